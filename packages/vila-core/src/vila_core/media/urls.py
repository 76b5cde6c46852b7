"""A strict URL parser. It refuses what a lenient parser would repair: parsers that disagree let URLs bypass filters."""

import ipaddress
import re
from dataclasses import dataclass

from vila_core.errors import FetchError
from vila_core.media.limits import FetchPolicy

_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?\.?)(?::([0-9]{1,5}))?", re.IGNORECASE)
_URL_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_MAX_URL = 8192


def shorten_url(url: str) -> str:
    """Return a name for messages: the host and the end of the path, but no query string, which may contain secrets."""
    match = _URL.fullmatch(url)
    if not match:
        text = re.sub("//[^/]*@", "//", url).partition("?")[0]
        return repr(text[:40] + ("…" if len(text) > 40 else ""))
    host, path = match[2].rpartition("@")[2], match[3]
    last = path.rpartition("/")[2]
    between = "/…/" if path.count("/") > 1 else "/"
    return repr(f"{match[1].lower()}://{host[:60]}{between}{last[-40:]}")


@dataclass(frozen=True)
class Target:
    """A parsed URL: the host in lower case without brackets, the path with its query as sent."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def parse_url(url: str, policy: FetchPolicy, name: str) -> Target:
    """Parse a URL; messages call it `name`.

    Raises:
        FetchError: the URL is not https, is malformed, has a user name, or its host is not allowed.
    """
    if len(url) > _MAX_URL:
        raise FetchError(f"URL {name} is {len(url)} characters long. At most {_MAX_URL} are accepted.")
    if not _URL_CHARACTERS.fullmatch(url):
        raise FetchError(
            f"URL {name} has characters that are not allowed in a URL "
            "(a space, a backslash, a control character or a non-ASCII character). "
            "Percent-encode the path and write the host in its xn-- form."
        )
    match = _URL.fullmatch(url)
    if not match:
        raise FetchError(
            f"URL {name} is not an https URL. Use https://host/path, or download the file and use its path."
        )
    scheme, authority, path, query = match[1].lower(), match[2], match[3] or "/", match[4] or ""
    if scheme == "http" and not policy.allow_http:
        raise FetchError(
            f"URL {name} is plain http; only https is fetched. Use https, or download the file and use its path."
        )
    if "@" in authority:
        raise FetchError(
            f"URL {name} contains a user name or password, which is not allowed. Remove everything before the '@'."
        )
    parts = _AUTHORITY.fullmatch(authority)
    if (
        not parts
        or not _is_host(parts[1])
        or not 0 < (port := int(parts[2] or (443 if scheme == "https" else 80))) < 65536
    ):
        raise FetchError(f"URL {name} has no valid host and port. Use https://host/path.")
    host = parts[1].lower().strip("[]")
    if policy.allowed_hosts is not None and not _is_allowed(host, policy.allowed_hosts):
        raise FetchError(
            f"URL {name}: its host is not in the list of allowed hosts. Ask to have it added, or send the file itself."
        )
    if policy.allowed_ports is not None and port not in policy.allowed_ports:
        raise FetchError(f"URL {name}: its port is not allowed. Use {_either(policy.allowed_ports)}.")
    return Target(scheme, host, port, path + query)


def _is_host(host: str) -> bool:
    """Return whether `host` is an IPv6 literal, a dotted IPv4 literal or a name.

    127.1, 0x7f000001 and 2130706433 are refused, because resolvers disagree on them.
    """
    if host.startswith("["):
        return _is_address(host[1:-1])
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdigit() or labels[-1].lower().startswith("0x"):
        return _is_address(host)
    return all(0 < len(label) < 64 for label in labels) and len(host) < 254


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    """Return whether a host in lower case is an entry, or a subdomain of one with a leading dot."""
    host = host.removesuffix(".")
    return any(host == entry or (entry.startswith(".") and host.endswith(entry)) for entry in allowed)


def _either(ports: tuple[int, ...]) -> str:
    return " or ".join(map(str, ports))


def resolve_redirect(target: Target, location: str, policy: FetchPolicy, name: str) -> Target:
    """Return the target of a redirect, checked like any URL. Source: RFC 3986, section 4.2.

    Raises:
        FetchError: it is refused, or leads from https to plain http.
    """
    origin = f"{target.scheme}://{target.host_header}"
    path = target.path.partition("?")[0]
    if location.startswith("//"):
        location = f"{target.scheme}:{location}"
    elif location.startswith("/"):
        location = origin + location
    elif location.startswith(("?", "#")):
        location = origin + path + location
    elif ":" not in re.split("[/?#]", location)[0]:  # else it has a scheme
        location = origin + path.rpartition("/")[0] + "/" + location
    try:
        following = parse_url(location, policy, name)
    except FetchError:
        raise FetchError(f"URL {name} redirects to a URL that is refused. Use the final https URL.") from None
    if target.scheme == "https" and following.scheme == "http":
        raise FetchError(f"URL {name} redirects from https to plain http. Use the final https URL.")
    return following
