"""Tasks found by a part of their names."""

import pytest

from tests.helpers.servers import make_bank, serving

NAMES = ("Größe", "grosse Stadt", "STRASSE 1", "Straße 2", "user.1+a")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(make_bank(tmp_path_factory.mktemp("bank"), NAMES)) as running:
        yield running


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("STRASSE", ["STRASSE 1", "Straße 2"]),
        ("straße", ["STRASSE 1", "Straße 2"]),
        ("grö", ["Größe"]),
        (".1+", ["user.1+a"]),  # as it is, and no pattern
        (".*", []),
        (" ", ["grosse Stadt", "STRASSE 1", "Straße 2"]),
        ("", list(NAMES)),
    ],
)
def test_search_finds_names_in_capitals_or_not(server, text, found):
    answer = server.http.get("/v1/models", params={"search": text})
    assert [model["id"] for model in answer.json()["data"]] == found
