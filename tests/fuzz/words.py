"""The words that inputs are changed with: keys and values that a reader knows, and texts that it must not take."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = (
    *_words("a.example *. 127.0.0.1 0x ::1 xn-- spiffe:// /ns/ /sa/ /*"),
    *("\x00", "\ud800"),
    *("\N{LATIN SMALL LETTER LONG S}", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"),  # ASCII in another case
)

UNITS = (*NAMES, *_words("ms h KiB unix:/ uid: ]: [::1]:80 /32 99999"), "9" * 30)

CONFIG = _words(
    """
    listeners address proxy_protocol trusted_peers identity tlvs static upstream port resolver hosts allow_networks
    policy files mode outer_sni require_match ech registry gateway labels timeouts limits access_log template events
    sample admin workers
    """
)

OWN_POLICY = _words(
    """
    default rules name action mode sni principals namespaces source_ips not_sni not_principals not_namespaces
    allow_networks limits connections rate burst per allow deny audit enforce monitor principal rule
    """
)

_ISTIO = _words(
    """
    apiVersion kind metadata spec items List v1 namespace istio-system annotations istio.io/dry-run true
    AuthorizationPolicy ServiceEntry security.istio.io/v1
    """
)

AUTHORIZATION_POLICY = _ISTIO + _words(
    """
    selector matchLabels action ALLOW DENY AUDIT CUSTOM rules from source principals notPrincipals namespaces
    notNamespaces serviceAccounts ipBlocks remoteIpBlocks requestPrincipals to operation ports notPorts hosts paths
    when key values notValues connection.sni source.principal source.namespace source.serviceAccount source.ip
    remote.ip destination.port td1/ns/a/sa/b old-td/ns/a/sa/b *-td/ns/a/sa/b td*/ns/a/sa/b
    """
)

SERVICE_ENTRY = _ISTIO + _words(
    """
    hosts addresses ports number name protocol targetPort location resolution endpoints exportTo . ~ MESH_EXTERNAL
    DNS NONE TLS
    """
)

QUERIES = _words("sni principal source_ip outer_sni ech expect reason rule allow deny unknown")

TEMPLATE = (*_words("$remote_addr ${detail} $ssl_preread_server_name ${ $ } ü"), "\x00", "\u2028", "x" * 1025)
