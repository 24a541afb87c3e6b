"""The bank and the server that most tests of the server use; a module that needs others has its own."""

import pytest

from tests.helpers.servers import make_bank, serving


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def server(bank):
    with serving(bank) as running:
        yield running
