"""How English words sound that no dictionary holds: spelling by rule, letters by their names, numbers as they are read."""

from __future__ import annotations

import re

_SOUNDS = (
    ("tion", "SH AH N"), ("ough", "AO"), ("igh", "AY"), ("tch", "CH"), ("sch", "SH"), ("eau", "OW"),
    ("th", "TH"), ("sh", "SH"), ("ch", "CH"), ("ph", "F"), ("wh", "W"), ("ck", "K"), ("ng", "NG"), ("qu", "K W"),
    ("ee", "IY"), ("ea", "IY"), ("oo", "UW"), ("ou", "AW"), ("ow", "OW"), ("ai", "EY"), ("ay", "EY"), ("ei", "AY"),
    ("ie", "IY"), ("oa", "OW"), ("oi", "OY"), ("oy", "OY"), ("au", "AO"), ("aw", "AO"), ("er", "ER"), ("ar", "AA R"),
    ("or", "AO R"), ("ll", "L"), ("ss", "S"), ("tt", "T"), ("nn", "N"), ("mm", "M"), ("pp", "P"), ("rr", "R"),
    ("a", "AE"), ("b", "B"), ("c", "K"), ("d", "D"), ("e", "EH"), ("f", "F"), ("g", "G"), ("h", "HH"), ("i", "IH"),
    ("j", "JH"), ("k", "K"), ("l", "L"), ("m", "M"), ("n", "N"), ("o", "OW"), ("p", "P"), ("q", "K"), ("r", "R"),
    ("s", "S"), ("t", "T"), ("u", "AH"), ("v", "V"), ("w", "W"), ("x", "K S"), ("y", "IY"), ("z", "Z"), ("'", ""),
)  # fmt: skip
"""Spelling to ARPAbet, longest first: crude, but a wrong phone or two hardly moves the ends of a word in an alignment."""

_CALLED = (
    "EY,B IY,S IY,D IY,IY,EH F,JH IY,EY CH,AY,JH EY,K EY,EH L,EH M,"
    "EH N,OW,P IY,K Y UW,AA R,EH S,T IY,Y UW,V IY,D AH B AH L Y UW,EH K S,W AY,Z IY"
)
_NAMES = dict(zip("abcdefghijklmnopqrstuvwxyz", _CALLED.split(","), strict=True))
"""What letters are called."""

_NUMBERS = {
    0: "Z IH R OW", 1: "W AH N", 2: "T UW", 3: "TH R IY", 4: "F AO R", 5: "F AY V", 6: "S IH K S", 7: "S EH V AH N",
    8: "EY T", 9: "N AY N", 10: "T EH N", 11: "IH L EH V AH N", 12: "T W EH L V", 13: "TH ER T IY N",
    14: "F AO R T IY N", 15: "F IH F T IY N", 16: "S IH K S T IY N", 17: "S EH V AH N T IY N", 18: "EY T IY N",
    19: "N AY N T IY N", 20: "T W EH N T IY", 30: "TH ER T IY", 40: "F AO R T IY", 50: "F IH F T IY",
    60: "S IH K S T IY", 70: "S EH V AH N T IY", 80: "EY T IY", 90: "N AY N T IY",
}  # fmt: skip
_HUNDRED, _THOUSAND = "HH AH N D R AH D", "TH AW Z AH N D"


def guess_phones(word: str) -> str | None:
    """ARPAbet for an English-looking `word` in lower case that no dictionary holds; None if not Latin.

    A letter that stands alone beside digits is spelled: e5 is "e five".
    """
    parts = re.findall(r"\d+|\D+", word)
    phones: list[str] = []
    for part in parts:
        if part.isdecimal():
            phones.append(_number(part))
        elif len(parts) > 1 and part in _NAMES:
            phones.append(_NAMES[part])
        elif (sound := _spelled(part)) is not None:
            phones.append(sound)
        else:
            return None
    return " ".join(filter(None, phones)) or None


def _spelled(word: str) -> str | None:
    phones: list[str] = []
    rest = re.sub(r"(?<=[^aeiou])e$", "", word) if len(word) > 3 else word
    while rest:
        for letters, sound in _SOUNDS:
            if rest.startswith(letters):
                phones += sound.split()
                rest = rest[len(letters) :]
                break
        else:
            return None
    return " ".join(phones)


def _number(digits: str) -> str:
    """A number as it is read: 1813 as a year, what is longer than six digits or begins with 0 digit by digit."""
    number = int(digits)
    if len(digits) > 6 or (digits[0] == "0" and len(digits) > 1):
        return " ".join(_NUMBERS[int(digit)] for digit in digits)
    if number <= 20:
        return _NUMBERS[number]
    if number < 100:
        return _together(_NUMBERS[number // 10 * 10], number % 10)
    if number < 1000:
        return _together(f"{_NUMBERS[number // 100]} {_HUNDRED}", number % 100)
    if 1100 <= number < 2000 and number % 100:
        between = f" {_NAMES['o']}" if number % 100 < 10 else ""
        return f"{_number(str(number // 100))}{between} {_number(str(number % 100))}"
    if 1100 <= number < 2000:
        return f"{_number(str(number // 100))} {_HUNDRED}"
    return _together(f"{_number(str(number // 1000))} {_THOUSAND}", number % 1000)


def _together(sound: str, rest: int) -> str:
    return f"{sound} {_number(str(rest))}" if rest else sound
