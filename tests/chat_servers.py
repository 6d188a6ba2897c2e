"""A chat server that answers as a test says: a real HTTP server, on a port of its own, with hand-made answers."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OK = "text/event-stream"


def event(text=None, finish=None, **delta):
    """One event of a stream, as OpenAI sends it."""
    delta = delta if text is None else {"content": text, **delta}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n".encode()


class ChatServer:
    """models: that it lists. answer: what it does with the handler of a question, such as `says`; both may change."""

    def __init__(self):
        self.models, self.answer = ["llama"], says(event("w1", "stop"))
        self.requests = []  # (method, path, headers, body)
        self.listing = self.give_list
        self.gone = threading.Event()  # a client that `silent` waited for has closed its connection
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(("GET", self.path, self.headers, None))
                outer.listing(self)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append(("POST", self.path, self.headers, body))
                with contextlib.suppress(OSError):
                    outer.answer(self)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.place = f"127.0.0.1:{self._http.server_port}"
        self.url = f"http://{self.place}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def give_list(self, handler):
        body = json.dumps({"object": "list", "data": [{"id": name} for name in self.models]}).encode()
        says(body, kind="application/json")(handler)

    def silent(self, *portions, headers=True):
        """An answer that says no more after these portions, and waits for its client to leave."""

        def answer(handler):
            if headers:
                says(*portions)(handler)
            handler.connection.settimeout(30)
            with contextlib.suppress(ConnectionError):  # what was sent last may not have been read
                assert handler.connection.recv(1) == b""
            self.gone.set()

        return answer

    def asked(self):
        """Bodies of the questions."""
        return [body for method, *_, body in self.requests if method == "POST"]

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def says(*portions, status=200, kind=OK, **headers):
    """An answer in these portions; each is sent by itself."""

    def answer(handler):
        handler.send_response(status)
        handler.send_header("content-type", kind)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        for portion in portions:
            handler.wfile.write(portion)
            handler.wfile.flush()

    return answer
