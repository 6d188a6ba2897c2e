"""Place of the cache."""

from pathlib import Path

from lite_c2f.storage.cache import cache_root


def test_a_tilde_is_the_home_folder(monkeypatch):
    """As in a .env file or a Dockerfile, where no shell writes it out."""
    monkeypatch.setenv("LITE_C2F_CACHE", "~/models")
    assert cache_root() == Path.home() / "models"
