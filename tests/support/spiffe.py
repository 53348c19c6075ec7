"""The mesh's own certificates: an authority, and for each workload one whose only name is its SPIFFE ID."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.istio import Credentials

_DAY = datetime.timedelta(days=1)


class MeshAuthority:
    """Issues to `folder`, where every user of the machine can read: Envoy may run as another one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "cluster.local")])
        self._issued = 0
        self._path = folder / "root-cert.pem"
        basic = x509.BasicConstraints(ca=True, path_length=None)
        root = self._builder(self._name, self._key).add_extension(basic, critical=True).sign(self._key, hashes.SHA256())
        self._path.write_bytes(root.public_bytes(Encoding.PEM))

    def nobody(self) -> Credentials:
        """Who knows the authority and has no certificate."""
        return Credentials(self._path)

    def issue(self, *uris: str) -> Credentials:
        """A certificate for these URIs; a real one has exactly one."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = self._builder(x509.Name([]), key).add_extension(names, critical=True)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        path = self._folder / f"cert-{self._issued}.pem"
        path.write_bytes(certificate)
        secret = path.with_name(f"key-{self._issued}.pem")
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Credentials(self._path, path, secret)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        self._issued += 1
        now = datetime.datetime.now(datetime.UTC)
        return x509.CertificateBuilder(self._name, subject, key.public_key(), self._issued, now - _DAY, now + _DAY)
