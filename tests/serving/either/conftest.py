"""One bank and one server for the tests of a module, by the engine that is here."""

import pytest

from tests.helpers.engines import bank_for_either, served


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return bank_for_either(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="module")
def server(bank):
    with served(bank) as running:
        yield running
