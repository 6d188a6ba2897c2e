"""Allowed routes of Gradio, chosen from the list of gradio 6.31's routes.py; all others are 404.

The list is compared with the exact text that the router compares: another spelling (`//login`, `/LOGIN`,
`%2e%2e`, a prefix more or less) is another path, on no list. Left out, as the page needs none of them:

- they open, fetch or store what a client names: file=, file/, proxy=, upload, upload_progress, process_recording,
  custom_component, svelte, pwa_icon, deep_link (also as a parameter of the page), run-history, runs, stream;
- they run or reveal more than the page does: component_server, vibe-*, undo-vibe-edit, dev/reload, profiling,
  monitoring, mcp, openapi.json, token, user, login_check, queue/status, api/NAME (run/NAME is the same).

Gradio's page fetches /assets, /static, theme.css and manifest.json, never file=; its queue uses run, queue, heartbeat,
cancel and reset, and app_id, by which a page notices that its server was restarted; its Python client uses config,
info, call or queue.
"""

import re
from collections.abc import Collection
from enum import Enum
from urllib.parse import parse_qsl

API = "/gradio_api"
NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}"  # no empty part, none that starts with a dot
GET = re.compile(
    rf"(/assets|/static)(/{NAME}){{1,4}}"
    r"|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/logout"
    rf"|{API}/(info/?|theme\.css|startup-events|heartbeat/{NAME}|app_id|queue/data|call/(v2/)?{NAME}/{NAME})"
)
POST = re.compile(rf"{API}/(queue/join|(run|call|call/v2)/{NAME}/?|reset/?|cancel)")


class Kind(Enum):
    """What a request is for."""

    page = "the page itself"
    part = "what the page loads and reads"
    action = "a question or a click"
    login = "a password"


def kind_of(method: str, path: str, pages: Collection[str] = ()) -> Kind | None:
    """What a request is for, or None where it is not served.

    path: as the router sees it, decoded and without the root path; pages: names of further pages of the app.
    """
    if path in ("", "/") and method in ("GET", "HEAD"):
        return Kind.page
    if method == "GET" and path.removeprefix("/").removesuffix("/") in pages and path.startswith("/"):
        return Kind.page
    if method == "POST" and path in ("/login", "/login/"):
        return Kind.login
    if method == "POST" and POST.fullmatch(path):
        return Kind.action
    if method == "GET" and GET.fullmatch(path):
        return Kind.part
    return None


def names_a_file(query: bytes) -> bool:
    """Does a query ask for a saved state of the page, which Gradio would open?"""
    return any(name == "deep_link" for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True))
