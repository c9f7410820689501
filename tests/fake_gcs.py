"""A stand-in for Google Cloud Storage: buckets in memory behind the JSON API, as gcsfs, TensorStore and Google's own
client speak it. It answers on loopback only."""

import base64
import email
import email.policy
import json
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c


class Request(NamedTuple):
    """What is asked, with the names in the path: mostly a bucket and an object."""

    method: str
    names: list[str]
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def parts(self) -> list[Any]:
        """Those of a multipart body."""
        kind = self.headers.get("Content-Type", self.headers.get("content-type"))
        lead = f"Content-Type: {kind}\r\n\r\n".encode()
        return list(email.message_from_bytes(lead + self.body, policy=email.policy.HTTP).iter_parts())


class Object(NamedTuple):
    """What is stored under a name."""

    content: bytes
    generation: int
    updated: str


class FakeGcs(ThreadingHTTPServer):
    """The server. `objects` is bucket -> name -> object; requests for a bucket in `closed` are forbidden."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *buckets: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, dict[str, Object]] = {bucket: {} for bucket in buckets}
        self.closed: set[str] = set()
        self.full = False
        """Whether uploads are refused."""
        self.requests: list[str] = []
        """`METHOD path` of each request."""
        self.uploads: dict[str, tuple[str, str, bytearray, dict[str, str]]] = {}
        self.before: Callable[[str, str], None] = lambda method, path: None
        """Called before a request is carried out: what waits in it makes the request late."""
        self.after: Callable[[str, str], None] = lambda method, path: None
        """The same before it is answered; what it raises loses the answer."""
        self.lock = threading.RLock()
        self._generation = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, bucket: str, name: str, content: bytes) -> Object:
        with self.lock:
            self._generation += 1
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self.objects[bucket][name] = Object(content, self._generation, now)
            return self.objects[bucket][name]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""

    def put_folder(self, bucket: str, name: str, folder: Path) -> str:
        """Stores the files of a folder; returns its URL."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(bucket, f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"gs://{bucket}/{name}"

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The objects under a prefix, without it."""
        return sorted(name.removeprefix(prefix) for name in self.objects[bucket] if name.startswith(prefix))


@contextmanager
def serving(*buckets: str) -> Iterator[FakeGcs]:
    """A server with these buckets, which this process and its children take for Google's."""
    with FakeGcs(*buckets) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def environment(server: FakeGcs) -> dict[str, str]:
    """The variables by which libraries find the stand-in."""
    return {
        "STORAGE_EMULATOR_HOST": server.url,
        "TENSORSTORE_GCS_HTTP_URL": server.url,
        "GOOGLE_CLOUD_PROJECT": "stand-in",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        # Asks Google itself what kind of bucket it is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and content leave as one packet.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: FakeGcs
    _ROUTES = (
        (r"/(?:(?:download|upload)/)?(?:storage/v1/)?b/([^/]+)/o/([^/]+)", "object"),
        (r"/(?:storage/v1/)?b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)", "rewrite"),
        (r"/(?:storage/v1/)?b/([^/]+)/o/?", "listing"),
        (r"/upload/(?:storage/v1/)?b/([^/]+)/o/?", "upload"),
        (r"/resume/([0-9]+)", "resume"),
        (r"/(?:storage/v1/)?b/([^/]+)/?", "bucket"),
    )

    def log_message(self, *arguments: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self._body()
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.before(self.command, self.path)
        status, headers, content = self._answer(self.command, self.path, dict(self.headers.items()), body)
        self.server.after(self.command, self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> "Answer":
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        for pattern, name in self._ROUTES:
            if found := re.fullmatch(pattern, parts.path):
                names = [unquote(group) for group in found.groups()]
                with self.server.lock:
                    if name in ("bucket", "object", "listing", "upload", "rewrite"):
                        if names[0] in self.server.closed:
                            return refusal(403, "the caller does not have storage.objects access to the bucket")
                        if names[0] not in self.server.objects:
                            return refusal(404, "The specified bucket does not exist.")
                    answer: Answer = getattr(self, f"_{name}")(Request(method, names, query, headers, body))
                    return answer
        return refusal(404, f"no such method: {method} {target}")

    def _bucket(self, asked: "Request") -> "Answer":
        return of_json({"kind": "storage#bucket", "id": asked.names[0], "name": asked.names[0], "location": "US"})

    def _listing(self, asked: "Request") -> "Answer":
        (bucket,), query = asked.names, asked.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], []
        for name in sorted(self.server.objects[bucket]):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folder = prefix + rest.partition(delimiter)[0] + delimiter
                if folder not in prefixes:
                    prefixes.append(folder)
                if not (query.get("includeTrailingDelimiter") == "true" and folder == name):
                    continue
            items.append(name)
        # Pages are small, so that what does not ask for the next one is found out.
        first = int(query.get("pageToken", 0))
        page = min(int(query.get("maxResults", 50)), 50)
        told: dict[str, Any] = {"kind": "storage#objects"}
        told["items"] = [self._resource(bucket, name) for name in items[first : first + page]]
        if first == 0 and prefixes:
            told["prefixes"] = prefixes
        if first + page < len(items):
            told["nextPageToken"] = str(first + page)
        return of_json(told)

    def _object(self, asked: "Request") -> "Answer":
        (bucket, name), query = asked.names, asked.query
        stored = self.server.objects[bucket].get(name)
        if refused := self._unmet(stored, query):
            return refused
        if stored is None:
            return refusal(404, f"No such object: {bucket}/{name}")
        if asked.method == "DELETE":
            del self.server.objects[bucket][name]
            return 204, {}, b""
        if query.get("alt") != "media":
            return of_json(self._resource(bucket, name))
        found = {"X-Goog-Generation": str(stored.generation), "ETag": f'"{stored.generation}"'}
        found |= {"Content-Type": "application/octet-stream", "X-Goog-Hash": f"crc32c={checksum(stored.content)}"}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.headers.get("Range", asked.headers.get("range", "")))
        if span is None:
            return 200, found, stored.content
        size = len(stored.content)
        first = int(span[1]) if span[1] else max(size - int(span[2]), 0)
        last = min(int(span[2]), size - 1) if span[1] and span[2] else size - 1
        if first >= size:
            return 416, {"Content-Range": f"bytes */{size}"}, b""
        del found["X-Goog-Hash"]
        return 206, found | {"Content-Range": f"bytes {first}-{last}/{size}"}, stored.content[first : last + 1]

    def _rewrite(self, asked: "Request") -> "Answer":
        bucket, name, other, copy = asked.names
        if refused := self._unmet(self.server.objects[other].get(copy), asked.query):
            return refused
        self.server.put(other, copy, self.server.objects[bucket][name].content)
        return of_json({"kind": "storage#rewriteResponse", "done": True, "resource": self._resource(other, copy)})

    def _upload(self, asked: "Request") -> "Answer":
        (bucket,), query = asked.names, asked.query
        if self.server.full:
            return refusal(403, "the project's quota is used up")
        name, kind, body = query.get("name", ""), query["uploadType"], asked.body
        if kind == "multipart":
            about, content = asked.parts()
            name = json.loads(_payload(about))["name"]
            body = _payload(content)
        if kind == "resumable":
            name = name or json.loads(body)["name"]
        if refused := self._unmet(self.server.objects[bucket].get(name), query):
            return refused
        if kind == "resumable":
            number = str(len(self.server.uploads))
            self.server.uploads[number] = (bucket, name, bytearray(), query)
            return 200, {"Location": f"{self.server.url}/resume/{number}"}, b""
        self.server.put(bucket, name, body)
        return of_json(self._resource(bucket, name))

    def _resume(self, asked: "Request") -> "Answer":
        bucket, name, content, query = self.server.uploads[asked.names[0]]
        content += asked.body
        told = re.fullmatch(r"bytes (?:\*|\d+-\d+)/(\*|\d+)", asked.headers.get("Content-Range", ""))
        if told is None or told[1] == "*" or int(told[1]) > len(content):
            return 308, {"Range": f"bytes=0-{len(content) - 1}"} if content else {}, b""
        if refused := self._unmet(self.server.objects[bucket].get(name), query):
            return refused
        self.server.put(bucket, name, bytes(content))
        return of_json(self._resource(bucket, name))

    def _unmet(self, stored: Object | None, query: dict[str, str]) -> "Answer | None":
        generation = 0 if stored is None else stored.generation
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            return refusal(412, "At least one of the pre-conditions you specified did not hold.")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            return 304, {}, b""
        return None

    def _resource(self, bucket: str, name: str) -> dict[str, Any]:
        stored = self.server.objects[bucket][name]
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{stored.generation}",
            "bucket": bucket,
            "name": name,
            "generation": str(stored.generation),
            "metageneration": "1",
            "size": str(len(stored.content)),
            "timeCreated": stored.updated,
            "updated": stored.updated,
            "etag": str(stored.generation),
            "md5Hash": base64.b64encode(md5(stored.content).digest()).decode(),
            "crc32c": checksum(stored.content),
            "contentType": "application/octet-stream",
        }


def _payload(part: Any) -> bytes:
    content: bytes = part.get_payload(decode=True)
    return content


Answer = tuple[int, dict[str, str], bytes]


def of_json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(value).encode()


def refusal(status: int, message: str) -> Answer:
    told = {"error": {"code": status, "message": message, "errors": [{"message": message, "reason": "refused"}]}}
    return status, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(told).encode()


def checksum(content: bytes) -> str:
    return base64.b64encode(struct.pack(">I", google_crc32c.value(content))).decode()
