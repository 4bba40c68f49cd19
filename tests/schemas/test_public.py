"""Nothing that lets anybody in is shown, whatever it is called and wherever it stands."""

from __future__ import annotations

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ids import source_id, unsigned
from schemas.public import SHOWN_PARAMETERS, is_secret, public_uri, scrubbed, told_of

SECRET = "SEKRETsekret0042SEKRET"
NAMES = """
sig Signature X-Amz-Signature X-Amz-Security-Token X-Amz-Credential X-Goog-Signature AWSAccessKeyId GoogleAccessId
token auth_token authToken access-token access_token oauth_token __token__ bearer jwt secret client_secret api_key
apikey apiKey api-key x-api-key key Key-Pair-Id Policy password passwd pwd pass user code session sessionid session_id
sid JSESSIONID PHPSESSID hmac hash md5 verify sas se sp st hdnts hdntl hdnea wmsAuthSign sign signature2 ticket nonce
Expires credential credentials cookie csrf refresh_token id_token private_key passphrase otp e t
""".split()  # noqa: SIM905 read as a text
COLUMNS = [name for name in NAMES if name not in ("user", "se", "sp", "st", "e", "t")]
FORMS = {
    "user": f"https://{SECRET}@h.example/v.mp4",
    "password": f"https://u:{SECRET}@h.example/v.mp4",
    "password with a slash": f"https://u:{SECRET}/x@h.example/v.mp4",
    "password with a bracket": f"https://u:{SECRET}[x@h.example/v.mp4",
    "bucket": f"s3://AK:{SECRET}@bucket/v.mp4",
    "fragment": f"https://h.example/v.mp4#access_token={SECRET}",
    "bare query": f"https://h.example/v.mp4?{SECRET}",
    "escaped name": f"https://h.example/v.mp4?%73ig={SECRET}",
    "name with a space": f"https://h.example/v.mp4?sig%20={SECRET}",
    "semicolon in a query": f"https://h.example/v.mp4?v=1;sig={SECRET}",
    "matrix parameter": f"https://h.example/v;token={SECRET}/v.mp4",
    "path token": f"https://h.example/exp=1~acl=/*~hmac={SECRET}/v.mp4",
    "path parameter": f"https://h.example/token={SECRET}/v.mp4",
    "path pair": f"https://h.example/token/{SECRET}/v.mp4",
    "opaque folder": f"https://h.example/s/{SECRET}/v.mp4",
    "escaped query in a path": f"https://h.example/v.mp4%3Fsig%3D{SECRET}",
    "nested": "https://h.example/v?u=" + quote(f"https://x/?sig={SECRET}", safe=""),
    "nested in a path": "https://h.example/" + quote(f"https://u:{SECRET}@x/", safe="") + "/v.mp4",
    "nested twice": "https://h.example/" + quote(quote(f"https://u:{SECRET}@x/", safe=""), safe="") + "/v.mp4",
    "nested plainly": f"https://h.example/https://u:{SECRET}@x/v.mp4",
    "backslashes": f"https:\\\\u:{SECRET}@h.example\\v.mp4",
    "allowed name": f"https://h.example/watch?v={SECRET}",
}


@pytest.mark.parametrize("uri", FORMS.values(), ids=FORMS.keys())
def test_every_place_of_an_address(uri: str) -> None:
    shown = public_uri(uri)
    assert SECRET not in shown
    assert shown.startswith(uri.partition(":")[0]), "people see where it leads"
    assert public_uri(shown) == shown
    assert SECRET not in scrubbed(f"could not get {uri}, sorry")


@pytest.mark.parametrize(
    ("uri", "said", "told"),
    [
        (
            f"s3://AK:{SECRET}@bucket/a.mp4",
            f'Invalid bucket name "AK:{SECRET}@bucket"',
            'Invalid bucket name "…@bucket"',
        ),
        (f"https://h/d?key=videos%2F{SECRET}&x=1", f"no videos/{SECRET} at h", "no … at h"),
        (f"https://h/d#{SECRET}", f"{SECRET} and https://u:{SECRET}@h/d", "… and https://h/d"),
        ("https://h.example/file.mp4?x=abc", "no file.mp4 at h.example, abc", "no file.mp4 at h.example, abc"),
    ],
)
def test_what_libraries_say_of_an_address(uri: str, said: str, told: str) -> None:
    assert told_of(uri, ValueError(said)) == told


@pytest.mark.parametrize("name", NAMES)
def test_every_name(name: str) -> None:
    assert SECRET not in public_uri(f"https://h.example/v.mp4?{name}={SECRET}")
    assert SECRET not in public_uri(f"https://h.example/v.mp4?id=1&{name.upper()}={SECRET}&list=2")
    assert public_uri(f"https://h.example/v.mp4?{name}=1") == "https://h.example/v.mp4"


@pytest.mark.parametrize("name", COLUMNS)
def test_every_name_of_a_column(name: str) -> None:
    assert is_secret(name, SECRET)


@given(
    st.text(string.ascii_letters + string.digits + "-_.~%", min_size=1, max_size=20).filter(
        lambda x: x not in SHOWN_PARAMETERS
    ),
    st.sampled_from(["https", "http", "s3", "gs"]),
    st.text(string.ascii_lowercase, max_size=5),
)
def test_a_parameter_of_any_name_is_left_out(name: str, scheme: str, folder: str) -> None:
    uri = f"{scheme}://host.example/{folder}/v.mp4?a=b&{name}={SECRET}&c={SECRET}#{SECRET}"
    assert SECRET not in public_uri(uri)


@given(st.text(max_size=60))
def test_anything_may_be_asked(text: str) -> None:
    for uri in (text, f"https://{text}", f"s3://{text}"):
        shown = public_uri(uri)
        shown.encode()
        assert not any(ord(each) < 32 for each in shown)
        scrubbed(uri)
        source_id(uri)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Authorization: Bearer {SECRET}", "Authorization: …"),
        (f'{{"cookie": "{SECRET}", "title": "a: b"}}', '{"cookie": …, "title": "a: b"}'),
        (f"api_key={SECRET}&title=x", "api_key=…&title=x"),
        ("AKIAABCDEFGHIJKLMNOP and eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "… and …"),
        ("He said: the password: swordfish = key", "He said: the password: swordfish = key"),
        ("see https://example.org/a?b=c#d, 1:2", "see https://example.org/a 1:2"),
    ],
)
def test_texts_lose_their_secrets_and_nothing_else(text: str, expected: str) -> None:
    assert scrubbed(text) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [("author", "Ada"), ("keyword", "x y"), ("key", "000012"), ("key", "videos/a.mp4"), ("md5", "0" * 32), ("passage", "x"),
     ("sha256", "ab"), ("language_code", "en-GB"), ("session", "2024-01-31"), ("design", "x"), ("transcript", "pass the key")],
)  # fmt: skip
def test_ordinary_columns_stay(name: str, value: str) -> None:
    assert not is_secret(name, value)
    assert scrubbed(value) == value


def test_ids_are_of_whole_addresses_but_for_signatures() -> None:
    for name in ("key", "token", "st", "se", "sp", "policy", "sig", "auth", "id"):
        assert source_id(f"https://h/d?{name}=a") != source_id(f"https://h/d?{name}=b")
    for kind in ("X-Amz-Signature={}&X-Amz-Credential={}&X-Amz-Date={}", "AWSAccessKeyId=k&Signature={}&Expires={}",
                 "Policy={}&Signature={}&Key-Pair-Id=k", "sv=2024&sig={}&se={}&sp=r",
                 "X-Goog-Signature={}&X-Goog-Credential=c"):  # fmt: skip
        once, again = (f"https://h/v.mp4?versionId=3&{kind.replace('{}', each)}" for each in ("a", "b"))
        assert source_id(once) == source_id(again), "it is signed anew for every run"
        assert unsigned(once) == "https://h/v.mp4?versionId=3"
    assert source_id("/data/a.mp4") == "s85afcb23a2c749b3981c", "ids of earlier runs stay"
