"""What may be shown of an address or of a text from outside: nothing that could let anybody in.

URLs authorise requests in their user names, queries, fragments and paths, under names nobody has a full list of. So what
is known to be harmless is shown, and everything else is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from schemas.printable import percent_escaped

LEFT_OUT = "…"
"""Stands where a part of a path or a text was left out; what is dropped at the end of an address leaves no mark."""
SHORTEST_SECRET = 4
"""Characters: shorter ones are found in any text."""
SHOWN_PARAMETERS = {"v": r"[\w-]{1,16}", "list": r"[\w-]{1,48}", "id": r"\d{1,20}"}
"""Query parameters that are shown, with the values they may have: what names a video on the sites that use them."""
SECRET_WORDS = frozenset(
    {
        *(
            "auth",
            "authentication",
            "authorisation",
            "authorization",
            "bearer",
            "oauth",
            "oauth2",
            "saml",
            "sso",
            "otp",
        ),
        *(
            "cookie",
            "cookies",
            "csrf",
            "xsrf",
            "jwt",
            "token",
            "tokens",
            "secret",
            "secrets",
            "credential",
            "credentials",
        ),
        *("cred", "creds", "pass", "passcode", "passphrase", "passwd", "password", "pwd", "pw", "apikey", "accesskey"),
        *("sas", "sig", "sign", "signature", "hmac", "jsessionid", "phpsessid", "sessionid", "sessid"),
        *(
            "hdnea",
            "hdntl",
            "hdnts",
            "hdntk",
            "awsaccesskeyid",
            "googleaccessid",
            "authkey",
            "authtoken",
            "accesstoken",
        ),
    }
)
"""Words in names of parameters, headers and columns whose value lets somebody in."""
DOUBTFUL_WORDS = frozenset(
    {"access", "acl", "code", "exp", "expires", "hash", "key", "keys", "md5", "nonce", "policy", "session", "sid", "ticket",
     "verify"}
)  # fmt: skip
"""Words of names that are as often harmless: the value decides (`_PLAIN`)."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?://|\\\\)[^\s\"'<>]+")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:/?#\[\]@\\%=&;]*)(?::\d{0,5})?")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_PLAIN = re.compile(
    r"\d{1,20}|[A-Za-z]{2,3}(?:-[A-Za-z]{2,4})?|[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|\d{4}-\d\d-\d\d[\dT:. Z+-]*"
    r"|[\w ./()-]+\.[A-Za-z][A-Za-z0-9]{1,4}"
)
"""Numbers, language codes, digests, dates, file names."""
_ASSIGNED = re.compile(
    r"""(?P<name>[\w.%-]{1,60})(?P<quote>["']?)(?P<sign>\s{0,2}[=:]\s{0,2})"""
    r"""(?P<value>"[^"]*"|'[^']*'|(?:Bearer|Basic|Digest)\s+\S+|[^\s&;,"']+)"""
)
_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "x-auth-token"})
_TOKENS = re.compile(
    r"eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"  # JSON web tokens (RFC 7519)
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}|\bya29\.[\w-]{10,}"  # Amazon, Google
    r"|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bhf_[A-Za-z]{20,}|\bxox[abprs]-[\w-]{10,}"
    r"|\bsk-[\w-]{20,}|\bBearer\s+[\w.~+/=-]{6,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
"""Credentials that are known by their form."""
_HINTS = ("eyJ", "AKIA", "ASIA", "AIza", "ya29.", "gh", "glpat-", "hf_", "xox", "sk-", "Bearer", "PRIVATE KEY")
"""What a text with any of them holds: quick to look for."""
_OPAQUE = re.compile(r"(?=.*[A-Z])(?=.*[a-z])(?=.*\d)[\w-]{20,}|[0-9a-fA-F]{32,}")
"""Folders of a path that nobody named: signatures of links that expire look so."""


def public_uri(uri: str) -> str:
    """`uri` with nothing in it that could let anybody in; local paths unchanged but for what a terminal would act on.

    Left out are user name and password, the fragment, every query parameter but those of `SHOWN_PARAMETERS`, and parts of the
    path that are parameters or look like tokens. The answer is for people: it need not lead anywhere.
    """
    if not _URL.match(uri):
        return percent_escaped(uri)
    scheme, _, rest = uri.partition(":")
    try:
        parts = urlsplit(f"{scheme}:{rest.replace(chr(92), '/')}" if rest.startswith("\\") else uri)
    except ValueError:  # what is wrong with it is a part of it that may be secret
        return f"{scheme}://{LEFT_OUT}"
    host = parts.netloc.rpartition("@")[2]
    if not _HOST.fullmatch(host):
        return f"{scheme}://{LEFT_OUT}"
    if parts.scheme == "file":
        return percent_escaped(urlunsplit((parts.scheme, host, parts.path, "", "")))
    path = "/".join(_segments(parts.path, is_web=parts.scheme in ("http", "https")))
    kept = [(name, value) for name, value in parse_qsl(parts.query) if _is_shown(name, value)]
    return percent_escaped(urlunsplit((parts.scheme, host, path, urlencode(kept), "")))


def _is_shown(name: str, value: str) -> bool:
    return name in SHOWN_PARAMETERS and re.fullmatch(SHOWN_PARAMETERS[name], value, re.ASCII) is not None


def _segments(path: str, *, is_web: bool) -> Iterator[str]:
    """The segments of a path as they may be shown."""
    segments = path.split("/")
    before = ""
    for number, segment in enumerate(segments):
        shown, _, _ = segment.partition(";") if is_web else (segment, "", "")
        plain = _unquoted(shown)
        is_named = number == len(segments) - 1 and re.search(r"\.[A-Za-z][A-Za-z0-9]{1,4}$", plain)
        is_value = bool(before) and is_secret_name(before) and not is_named
        is_token = is_web and not is_named and _OPAQUE.fullmatch(plain)
        yield LEFT_OUT if is_value or is_token or _is_private(plain, is_web=is_web) else shown
        before = plain


def _is_private(segment: str, *, is_web: bool) -> bool:
    """Whether a segment of a path, unquoted, holds an address, a login, or a parameter that is not to be shown."""
    if any(mark in segment for mark in ("://", "?", "\\")) or (is_web and "@" in segment[1:]):
        return is_web or "://" in segment
    if _TOKENS.search(segment) or ("~" in segment and "=" in segment):
        return True
    names = re.findall(r"([\w.-]+)\s*[=:]", segment)
    return any(is_secret_name(name) or _words(name) & DOUBTFUL_WORDS for name in names)


def _unquoted(text: str) -> str:
    """`text` without percent escapes, however often it was escaped."""
    for _ in range(4):
        text, before = unquote(text), text
        if text == before:
            break
    return text


@lru_cache(maxsize=4096)
def _words(name: str) -> frozenset[str]:
    """The words of a name written in any style, lower case, and all of them as one."""
    words = [word.lower() for word in _WORD.findall(_unquoted(name))]
    return frozenset([*words, "".join(words), *(a + b for a, b in pairwise(words))])


def is_secret_name(name: str) -> bool:
    """Whether a parameter, header or column of this name holds what lets somebody in."""
    return bool(_words(name) & SECRET_WORDS)


def is_secret(name: str, value: str) -> bool:
    """Whether the text `value` in a column of this name is to be left out; of doubtful names the value decides."""
    words = _words(name)
    if words & SECRET_WORDS:
        return True
    return bool(words & DOUBTFUL_WORDS) and _PLAIN.fullmatch(value.strip()) is None


def scrubbed(text: str) -> str:
    """A text from outside without the secrets of the addresses, headers, parameters and tokens in it."""
    if "://" in text or ":\\\\" in text:
        text = _URL.sub(lambda found: public_uri(found[0]), text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(_assigned, text)
    return _TOKENS.sub(LEFT_OUT, text) if any(hint in text for hint in _HINTS) else text


def told_of(address: str, text: object) -> str:
    """What a library says about an address, without the secrets of texts and without those parts of the address."""
    told = scrubbed(str(text))
    for part in sorted(_hidden_parts(address), key=len, reverse=True):
        told = told.replace(part, LEFT_OUT)
    return told


def _hidden_parts(address: str) -> set[str]:
    """Stretches of an address that `public_uri` leaves out, as they stand there and unquoted."""
    _, _, rest = address.partition("://")
    login = rest.rpartition("@")[0]
    found = {login, *login.split(":", 1), *re.split(r"[/?#&;=@]", rest)}
    shown = public_uri(address)
    return {
        form for part in found for form in (part, unquote(part)) if len(form) >= SHORTEST_SECRET and part not in shown
    }


def _assigned(found: re.Match[str]) -> str:
    """`name=value`, or `name: value` of a header or in quotes, without the value where the name says that it is secret."""
    name, is_pair = found["name"], "=" in found["sign"] or bool(found["quote"])
    if is_secret_name(name) if is_pair else name.lower() in _HEADERS:
        return f"{name}{found['quote']}{found['sign']}{LEFT_OUT}"
    return found[0]
