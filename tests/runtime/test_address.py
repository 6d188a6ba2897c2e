"""Addresses of servers: sockets, host names, keys. Those of the app are tested in tests/ui/test_serve.py."""

import socket

import pytest

from lite_c2f.errors import ConfigError
from lite_c2f.runtime.address import bound_socket, checked_key, host_names, is_allowed_host


def test_a_bound_socket_holds_its_port_before_it_listens():
    with bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert port > 0
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0  # refused: nobody waits for the models to be loaded
        bound.listen()
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1"):
            bound_socket("127.0.0.1", port)


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("127.0.0.1:8000", True),
        ("LOCALHOST", True),
        ("[::1]", True),
        ("[::1]:8000", True),
        ("::1", False),
        ("evil.example", False),
        ("localhost.evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_a_host_header_is_one_of_the_names(header, allowed):
    assert is_allowed_host(header, host_names("127.0.0.1")) is allowed
    assert is_allowed_host(header, host_names("0.0.0.0"))


def test_a_key_fits_into_a_header():
    assert (checked_key(None), checked_key(" k1 ")) == (None, "k1")
    for key in ("", " ", "a b", "schlüssel", "a\nb"):
        with pytest.raises(ConfigError):
            checked_key(key)
