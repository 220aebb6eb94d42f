"""Local sign-in services: Microsoft Entra's and Google's. Each gives numbered tokens for the right key alone."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

import orjson
from google.auth import jwt
from loopback import LoopbackServer, Reply, Request

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "app-1"
CLIENT_SECRET = "entra~secret~0123456789"
ACCOUNT = "robot@p1.iam.gserviceaccount.com"


class SignIn:
    """Gives tokens `token-1`, `token-2` ... that are good for `expires_in` seconds."""

    def __init__(self, judge: Callable[[str, dict[str, str]], Reply | None], tls: ssl.SSLContext | None = None) -> None:
        self.expires_in = 3600
        self.given: list[str] = []
        self.asked: list[dict[str, str]] = []
        self._judge = judge
        self._server = LoopbackServer(self._reply, tls=tls)

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.__exit__(*exc)

    @property
    def origin(self) -> str:
        return self._server.origin

    def _reply(self, request: Request) -> Reply:
        if request.path.endswith("/.well-known/openid-configuration"):
            base = f"{self.origin}/{TENANT}"
            return _json({"authorization_endpoint": f"{base}/authorize", "token_endpoint": f"{base}/token",
                          "issuer": f"{base}/v2.0"})  # fmt: skip
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        self.asked.append(form)
        refusal = self._judge(self.origin, form)
        if refusal is not None:
            return refusal
        self.given.append(f"token-{len(self.given) + 1}")
        return _json({"token_type": "Bearer", "access_token": self.given[-1], "expires_in": self.expires_in})


def entra(tls: ssl.SSLContext) -> SignIn:
    """Return Entra's service for one application. It echoes a wrong secret, as no service should."""

    def judge(_origin: str, form: dict[str, str]) -> Reply | None:
        if (form.get("client_id"), form.get("client_secret")) == (CLIENT, CLIENT_SECRET):
            return None
        text = f"AADSTS7000215: Invalid client secret provided: {form.get('client_secret')}"
        return _json({"error": "invalid_client", "error_description": text}, status=401)

    return SignIn(judge, tls)


def google(certificate: bytes) -> SignIn:
    """Return Google's service for one service account, whose key this certificate belongs to."""

    def judge(_origin: str, form: dict[str, str]) -> Reply | None:
        try:
            claims: Any = jwt.decode(
                form["assertion"], certs=certificate, audience="https://oauth2.googleapis.com/token"
            )
        except ValueError as error:
            return _json({"error": "invalid_grant", "error_description": f"Invalid JWT: {error}"}, status=400)
        assert claims["iss"] == ACCOUNT
        assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"
        return None

    return SignIn(judge)


def tls_context(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return a context for 127.0.0.1 and the file of its certificate."""
    key, certificate = key_pair()
    path, key_path = folder / "cert.pem", folder / "key.pem"
    path.write_bytes(certificate)
    key_path.write_bytes(key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path, key_path)
    return context, path


def key_pair() -> tuple[bytes, bytes]:
    """Return a private key and its certificate for 127.0.0.1, both PEM."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)


def _json(body: Any, *, status: int = 200) -> Reply:
    return Reply(status=status, body=orjson.dumps(body))
