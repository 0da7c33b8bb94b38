"""An HTTP server on the loopback that answers as told, well or badly."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Answers the paths of ``answers`` by calling what stands there with the handler; all else is 404.

    Attributes:
        requests: method and path of each request so far.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_port}'

    def add(self, path: str, content: bytes, claimed: int | None = None, **headers: str) -> str:
        """Serve ``content`` at ``path``, its length said to be ``claimed``; the address."""

        def answer(handler):
            handler.send_response(200)
            handler.send_header('Content-Length', str(len(content) if claimed is None else claimed))
            for key, value in headers.items():
                handler.send_header(key.replace('_', '-'), value)
            handler.end_headers()
            if handler.command == 'GET':
                handler.wfile.write(content)

        self.answers[path] = answer
        return self.url + path

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.01))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(f'{self.command} {self.path}')
        self.close_connection = True
        answer = self.server.answers.get(self.path)
        if answer is None:
            return self.send_error(404)
        return answer(self)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass
