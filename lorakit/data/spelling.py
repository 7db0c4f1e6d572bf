"""How corpora spell their tags, and the one spelling that the rest of lorakit reads: `B-PER`.

prefix      B-PER, or with an underscore B_PER; the letters are those of every scheme: B I E S L U M W
suffix      PER-B or PER_B
lower       b-PER, b_PER, PER-b or PER_b: the same letters in lower case
untyped     B, I, O (also E, S, ...) without a type: the only type is then called ENTITY
types       PER: every word of an entity has its type, so that two entities of one type side by side read as one (IO)
"""

import re
from collections.abc import Collection, Iterable

UNTYPED = "ENTITY"
LETTERS = "BIESLUMW"
ABOUT = {
    "lower": "tags with letters in lower case (b-per): read as B-per",
    "types": "tags without prefixes (IO): two entities of one type side by side are read as one",
    "untyped": f"tags without a type: every entity is called {UNTYPED}",
}  # what to know about a spelling

_HYPHEN = re.compile(rf"[{LETTERS}]-.+", re.DOTALL)
_PREFIX = re.compile(rf"([{LETTERS}])[-_](.+)", re.DOTALL)
_SUFFIX = re.compile(rf"(.+)[-_]([{LETTERS}])", re.DOTALL)
_LOWER = re.compile(rf"([{LETTERS.lower()}])[-_](.+)", re.DOTALL)
_LOWER_SUFFIX = re.compile(rf"(.+)[-_]([{LETTERS.lower()}])", re.DOTALL)
_TYPE = re.compile(r"[^\W\d_][\w./&+-]*\w")
_OTHER_JOINT = re.compile(rf"[{LETTERS}][./&+].+|.+[./&+][{LETTERS}]", re.DOTALL)  # B/PER: no type, but no tag either
_MOST_TYPES = 200


def spelling_of(tags: Collection[str], bare: bool = True) -> str | None:
    """The one spelling of all these tags; None if they have none in common.

    Example:
        from lorakit.data.spelling import spelling_of
        spelling_of({"O", "PER-B", "PER-I"}), spelling_of({"NN", "VBD"})  # ('suffix', None)

    Args:
        tags: every tag of a corpus, each at least once.
        bare: whether types without any letter may count as tags ("types"). They do only beside an "O" or "-".
    """
    outside = _outside(tags)
    others = [tag for tag in tags if tag != outside]
    if all(map(_PREFIX.fullmatch, others)):
        return "prefix"
    if all(map(_SUFFIX.fullmatch, others)):
        return "suffix"
    if all(len(tag) == 1 and tag in LETTERS for tag in others):
        return "untyped"
    for form, letter in ((_LOWER, 1), (_LOWER_SUFFIX, 2)):
        matches = [form.fullmatch(tag) for tag in others]
        # an entity has a b- or i-, s- or u-; without one, e-mail is a type
        if all(matches) and any(match[letter] in "bisu" for match in matches if match):
            return "lower"
    if (
        not bare or outside not in tags or outside in "_o" or len(others) > _MOST_TYPES
    ):  # o and _ are words, or no value
        return None
    lettered = any(_PREFIX.fullmatch(tag) or _SUFFIX.fullmatch(tag) for tag in others)
    lettered |= bool(others) and all(map(_OTHER_JOINT.fullmatch, others))
    return "types" if not lettered and all(map(_TYPE.fullmatch, others)) else None


def plain_tags(tags: Iterable[str], spelling: str) -> dict[str, str]:
    """Tag -> the same tag as a letter, a hyphen and the type. Tags of another spelling are left out.

    Example:
        from lorakit.data.spelling import plain_tags
        plain_tags(["O", "PER-B"], "suffix")  # {'O': 'O', 'PER-B': 'B-PER'}
    """
    plain, tags = {}, dict.fromkeys(tags)
    outside = _outside(tags)
    for tag in tags:
        if tag == outside:
            plain[tag] = "O"
        elif spelling == "prefix" and _HYPHEN.fullmatch(tag):
            plain[tag] = tag
        elif spelling == "prefix" and (match := _PREFIX.fullmatch(tag)):
            plain[tag] = f"{match[1]}-{match[2]}"
        elif spelling == "suffix" and (match := _SUFFIX.fullmatch(tag)):
            plain[tag] = f"{match[2]}-{match[1]}"
        elif spelling == "lower" and (match := _LOWER.fullmatch(tag)):
            plain[tag] = f"{match[1].upper()}-{match[2]}"
        elif spelling == "lower" and (match := _LOWER_SUFFIX.fullmatch(tag)):
            plain[tag] = f"{match[2].upper()}-{match[1]}"
        elif spelling == "untyped" and len(tag) == 1 and tag in LETTERS:
            plain[tag] = f"{tag}-{UNTYPED}"
        elif spelling == "types" and _TYPE.fullmatch(tag):
            plain[tag] = f"I-{tag}"
    return plain


def _outside(tags: Collection[str]) -> str:
    """What the corpus writes for words outside of entities: O; or where none is O, - (Naver's corpus), _ or o."""
    others = [tag for tag in ("-", "_", "o") if tag in tags]
    return others[0] if others and "O" not in tags and len(tags) > 1 else "O"
