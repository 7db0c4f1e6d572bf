import pytest

from tests.support.toy import toy_data


@pytest.fixture(scope="session")
def data():
    return toy_data(96, 40, 40)
