"""Downloads from strangers: every check at every hop, against a real server and with injected names."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from genevolve.tools.fetch import Fetcher, Limits
from genevolve.tools.picture import Refused
from tests.tools.test_picture import SVG
from tests.tools.web import PUBLIC, Clock, Names, Reply, Server, endless, moved, picture, reset, send, status

GOOD = picture("JPEG", (300, 200))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({"/a.jpg": send(GOOD)}).running() as s:
        yield s


def refusal(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(Refused) as e:
        fetcher.fetch(url)
    return e.value.reason


def test_a_picture_is_loaded_from_the_address_that_was_checked(server: Server) -> None:
    names = Names(server.port)
    data, suffix = Fetcher(names.net).fetch("http://Pictures.example/a.jpg?width=9#part")
    assert suffix == "jpg"
    assert data != GOOD
    assert names.dialled == [(PUBLIC, 80)]
    method, path, headers, body = server.requests[0]
    assert (method, path, headers["host"], body) == ("GET", "/a.jpg?width=9", "pictures.example", b"")
    assert headers["accept-encoding"] == "identity"
    assert not headers.keys() & {"cookie", "referer", "authorization", "x-api-key"}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://h.example/a.jpg", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("data:image/png;base64,AAAA", "scheme"),
        ("gopher://h.example/", "scheme"),
        ("//h.example/a.jpg", "scheme"),
        ("a.jpg", "scheme"),
        ("http:///a.jpg", "URL"),
        ("http://", "URL"),
        ("http://h.example\n.evil/", "URL"),
        ("http://xn--a/", "URL"),
        ("http://h.example/" + "a" * 2000, "URL"),
        ("", "URL"),
        ("http://user:word@h.example/a.jpg", "credentials"),
        ("http://h.example@10.0.0.1/", "credentials"),
        ("http://h.example:8080/a.jpg", "port"),
        ("http://h.example:0/a.jpg", "port"),
        ("https://h.example:22/", "port"),
        ("http://gone.example/a.jpg", "no address"),
        ("http://inside.example/a.jpg", "private address"),
        ("http://mixed.example/a.jpg", "private address"),
        ("http://mapped.example/a.jpg", "private address"),
        ("http://metadata.example/latest/", "private address"),
    ],
)
def test_a_url_that_may_not_be_followed_is_refused_before_any_connection(server: Server, url: str, reason: str) -> None:
    names = Names(
        server.port,
        {
            "gone.example": [],
            "inside.example": ["10.1.2.3"],
            "mixed.example": [PUBLIC, "127.0.0.1"],
            "mapped.example": ["::ffff:10.0.0.1"],
            "metadata.example": ["169.254.169.254"],
        },
    )
    assert refusal(Fetcher(names.net), url) == reason
    assert names.dialled == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "127.1",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[fe80::1%25lo]",
    ],
)
def test_every_spelling_of_this_machine_is_refused_by_the_real_resolver(server: Server, host: str) -> None:
    from genevolve.tools.wire import Net

    fetcher = Fetcher(Net(), Limits(ports=frozenset({80, server.port})))
    assert refusal(fetcher, f"http://{host}:{server.port}/a.jpg") in ("private address", "no address", "URL")
    assert server.requests == []


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("http://127.0.0.1/a.jpg", "private address"),
        ("http://[::1]/a.jpg", "private address"),
        ("//169.254.169.254/latest/meta-data/", "private address"),
        ("http://inside.example/", "private address"),
        ("http://other.example:6379/", "port"),
        ("http://root:x@other.example/", "credentials"),
        ("file:///etc/passwd", "scheme"),
        ("", "URL"),
        ("http://xn--a/", "URL"),
    ],
)
def test_every_redirect_is_checked_again(to: str, reason: str) -> None:
    with Server({"/a.jpg": moved(to)}).running() as s:
        names = Names(
            s.port,
            {
                "inside.example": ["192.168.0.1"],
                "127.0.0.1": ["127.0.0.1"],
                "::1": ["::1"],
                "169.254.169.254": ["169.254.169.254"],
            },
        )
        assert refusal(Fetcher(names.net), "http://h.example/a.jpg") == reason
        assert len(s.requests) == 1


def test_redirects_are_followed_five_times_and_no_more() -> None:
    hops: dict[str, Reply] = {f"/{n}": moved(f"/{n + 1}", 301 + n % 3) for n in range(5)}
    with Server(
        {**hops, "/5": send(GOOD), "/loop": moved("/loop"), "/far": moved("http://b.example/5")}
    ).running() as s:
        names = Names(s.port)
        assert Fetcher(names.net).fetch("http://h.example/0")[1] == "jpg"
        assert Fetcher(names.net).fetch("http://h.example/far")[1] == "jpg"
        assert s.requests[-1][2]["host"] == "b.example"
        before = len(s.requests)
        assert refusal(Fetcher(names.net), "http://h.example/loop") == "redirects"
        assert len(s.requests) - before == 6


def test_a_name_that_changes_its_mind_is_asked_once_a_hop(server: Server) -> None:
    names = Names(server.port)
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    names.look_up = lambda host, port: next(answers)  # type: ignore[method-assign]
    from genevolve.tools.wire import Net

    net = Net(look_up=lambda host, port: next(answers), dial=names.dial)
    Fetcher(net).fetch("http://rebind.example/a.jpg")
    assert names.dialled == [(PUBLIC, 80)]
    assert refusal(Fetcher(net), "http://rebind.example/a.jpg") == "private address"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (send(b"<html>no such picture</html>", Content_Type="image/png"), "not a picture"),
        (send(SVG, Content_Type="image/svg+xml"), "not a picture"),
        (send(SVG, Content_Type="image/png"), "not a picture"),
        (send(GOOD[:-200]), "broken picture"),
        (send(GOOD[:-200], length=len(GOOD)), "HTTP"),
        (send(GOOD, length=10**9), "bytes"),
        (send(GOOD, length=10**30), "HTTP"),
        (endless(drop=b"x" * 65536), "bytes"),
        (send(GOOD, Content_Encoding="gzip"), "encoding"),
        (send(GOOD, Content_Encoding="br"), "encoding"),
        (status(404), "HTTP 404"),
        (status(500), "HTTP 500"),
        (status(204), "HTTP 204"),
        (reset, "connection"),
        (endless(b"SSH-2.0-OpenSSH\r\n", b" " * 4096), "HTTP"),
        (endless(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 4096), "HTTP"),
    ],
)
def test_a_bad_answer_is_refused_with_one_reason(reply: Reply, reason: str) -> None:
    with Server({"/a.jpg": reply}).running() as s:
        assert refusal(Fetcher(Names(s.port).net, Limits(bytes=500_000)), "http://h.example/a.jpg") == reason


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-Slow: ", b""])
def test_a_drip_ends_at_the_deadline_wherever_it_drips(start: bytes) -> None:
    with Server({"/a.jpg": endless(start, b"x")}).running() as s:
        names = Names(s.port, clock=Clock(tick=1.0))
        assert refusal(Fetcher(names.net), "http://h.example/a.jpg") == "time"
        assert names.net.clock() < 1000 + 20  # type: ignore[operator]


def test_a_server_that_hangs_is_left(server: Server) -> None:
    server.script["/hang"] = [server.hang()]
    assert refusal(Fetcher(Names(server.port).net, Limits(seconds=0.2)), "http://h.example/hang") == "time"


def test_a_resolver_that_hangs_is_left(server: Server) -> None:
    from genevolve.tools.wire import Net

    net = Net(look_up=lambda host, port: [str(server.over.wait(30))])
    assert refusal(Fetcher(net, Limits(seconds=0.1)), "http://h.example/a.jpg") == "time"
    server.over.set()


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a self-signed certificate for `name`, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    start = datetime.datetime(2020, 1, 1)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, start, datetime.datetime(2120, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "c.pem", folder / "k.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return files


def test_https_names_the_host_and_verifies_it_though_an_address_is_dialled(tmp_path: Path) -> None:
    pem, key = certificate(tmp_path, "pictures.example")
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(pem, key)
    told: list[str | None] = []
    inside.sni_callback = lambda _socket, name, _context: told.append(name)
    server = Server({"/a.jpg": send(GOOD)})
    server.http.socket = inside.wrap_socket(server.http.socket, server_side=True)
    ours = ssl.create_default_context(cafile=str(pem))
    with server.running():
        names = Names(server.port, tls=lambda: ours)
        assert Fetcher(names.net).fetch("https://pictures.example/a.jpg")[1] == "jpg"
        assert told == ["pictures.example"]
        assert names.dialled == [(PUBLIC, 443)]
        assert refusal(Fetcher(names.net), "https://other.example/a.jpg") == "certificate"
        assert refusal(Fetcher(Names(server.port).net), "https://pictures.example/a.jpg") == "certificate"
        assert len(server.requests) == 1
