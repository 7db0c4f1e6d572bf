"""The rows of a column file: lines, comments and the borders of sentences and documents, before anything is a word.

Two kinds of lines look like rows and hold no word: a header (`word  pos  tag`), and in CoNLL-U the surface form of
several words (1-2) and a word that is not in the text (8.1).
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from lorakit._counts import counted
from lorakit.data.formats.conll_lines import lists_in_columns, sentence_form
from lorakit.data.formats.conll_rows import Block, Table, filtered, values_of
from lorakit.data.formats.json_text import is_object

BORDERS = ("-DOCSTART-", "###MEDLINE:")  # CoNLL-2003, BioNLP2004
GLOBAL_COLUMNS = re.compile(r"#\s*global\.columns\s*=\s*(.*)")
_FIRST = 1000  # lines, by which comments and quotation marks are told from words
_MARKS = ("#begin document", "#end document")
_NEW_DOCUMENT = re.compile(r"#begin document|#\s*newdoc\b")
_NEW_SENTENCE = re.compile(r"#\s*(sent_id|newdoc|newpar)\b")
_NUMBER = re.compile(r"\d+([-.]\d+)?")  # CoNLL-U also counts 1-2 and 8.1
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_WORD_NAME = re.compile(r"(FORM|WORD|TOKEN|TEXT)S?")
_TAG_NAME = re.compile(
    r"(NER?|BIO|BIOES|IOB2?|IOBES|BILOU|(NAMED[_ -]?)?ENTIT(Y|IES)|TAGS?|LABELS?)([_ -]?(TAG|LABEL|TYPE|IOB2?|BIO)S?)?"
    "|NE[_-](COARSE|FINE|NESTED)([_-](LIT|METO|COMP))?"  # HIPE
)
_SURE_TAG = re.compile(r"O|[BIESLUMW][-_].+|.+[-_][BIESLUMW]|[BIES]")
_TYPED_TAG = re.compile(r"[BIESLUMW]-\S+")
Row = list[str]


def parse_table(text: str, path: Path) -> Table:
    """The rows of a column file's text; `path` is for messages.

    Raises:
        ValueError: a line has another number of columns than those before, or holds a carriage return, or a JSON
            object.
    """
    notes = []
    if "\r" in text:
        text, mac = _line_ends(text, path)
        notes += [("a carriage return ends each line (old Mac): read as line ends", str(path))] if mac else []
    lines = text.split("\n")
    names = next((tuple(match[1].split()) for line in lines[:100] if (match := GLOBAL_COLUMNS.match(line))), ())
    is_conll2012 = any(line.startswith(_MARKS[0]) for line in lines[:100]) and not names
    plain = list(islice(_rows_of(lines), _FIRST))
    if plain and is_object(plain[0]):
        example = '{"tokens": ["EU", "ran"], "tags": ["B-ORG", "O"]}'
        raise ValueError(f"{path}: is JSON, and no JSON format has such fields; write each sentence as {example}")
    if not names and plain and (found := _sentences_in_lines(lines, plain, path)):
        return found._replace(notes=(*notes, *found.notes))
    split = cells if names or '"' not in text or not _is_quoted(lines) else _unquoted
    if split is _unquoted:
        notes.append(("cells are in quotation marks, as spreadsheets write them: read without them", str(path)))
    some = [split(line) for line in plain]
    is_comment = _comments(some, plain, names, is_conll2012)
    blocks: list[Block] = []
    rows: list[Row] = []
    numbers: list[int] = []
    width, document, padded, doubtful = 0, 0, "", ""

    def end_sentence() -> None:
        nonlocal rows, numbers
        if rows:
            blocks.append(Block(tuple(zip(*rows, strict=True)), numbers, document))
            rows, numbers = [], []

    for number, line in enumerate(lines, start=1):
        if line[:1] in " \t-#":  # or empty: all others are rows
            is_border = _is_border(line)
            if is_border or line[:1] == "#" and is_comment(line, not rows):
                if is_border or line.startswith(_MARKS) or _NEW_SENTENCE.match(line):
                    end_sentence()
                doubtful = doubtful or (_may_be_row(line, width) and f"{path}:{number}") or ""
                document += line.startswith(BORDERS) or _NEW_DOCUMENT.match(line) is not None
                width = 0 if is_conll2012 else width
                continue
        row = line.split("\t")
        if split is _unquoted:
            row = split(line)
        elif " " in line:
            padded = padded or ("\t" in line and row != cells(line) and f"{path}:{number}") or ""
            row = cells(line)
        width = width or len(row)
        if len(row) != width or width < 2:
            if len(row) < 2:
                raise ValueError(
                    f"{path}:{number}: broken line {line!r}: one column; a line holds a word, then its tag"
                )
            raise ValueError(
                f"{path}:{number}: broken line {line!r}: {len(row)} columns, the lines before have {width}; write as "
                "many, with tabs between them where a word has spaces or is empty"
            )
        rows.append(row)
        numbers.append(number)
    end_sentence()
    if padded:
        notes.append(("spaces around words and tags were removed", padded))
    if doubtful:
        what = "a line begins with # and holds what may be a tag: read as a comment"
        fix = "if it is a word, give it the columns of the other lines, and the tag the spelling of theirs"
        notes.append((f"{what} ({fix})", doubtful))
    return Table(path, blocks, names, is_conll2012, tuple(notes))


def words_only(table: Table) -> Table:
    """The table without the rows that hold no word: a header, and some of CoNLL-U's; each list in a cell as words."""
    return _conllu_words_only(_words_of_lists(_without_header(table)))


def cells(line: str) -> Row:
    """The cells of a line without the spaces that pad them; a cell of spaces only is kept as it is."""
    if "\t" in line:
        return [cell.strip(" ") or cell for cell in line.split("\t")]
    return re.split(" +", line.strip(" ")) if line.strip(" ") else []


# A sentence per line --------------------------------------------------------------------------------------------------


def _sentences_in_lines(lines: list[str], plain: list[str], path: Path) -> Table | None:
    """The table of a file that has a sentence in each line, as its first rows (`plain`) have."""
    if (form := sentence_form(plain)) is None:
        return None
    blocks: list[Block] = []
    document = 0
    for number, line in enumerate(lines, start=1):
        if _is_border(line):
            document += line.startswith(BORDERS)
        elif pairs := form.read(line):
            words, tags = zip(*pairs, strict=True)
            blocks.append(Block((words, tags), [number] * len(words), document))
        elif not line.startswith(("# ", *_MARKS)):
            raise ValueError(
                f"{path}:{number}: broken line {line[:60]!r}: each line before is a sentence; write it as they are"
            )
    return Table(path, blocks, (), False, ((form.about, str(path)),))


def _words_of_lists(table: Table) -> Table:
    """The table with a row for each word where its cells are lists: of words, and of as many tags."""
    some = (cell for block in table.blocks[:_FIRST] for column in block.columns for cell in column)
    if table.is_conll2012 or not any(" " in cell for cell in some) or not (found := lists_in_columns(_rows(table))):
        return table
    blocks = []
    for block in table.blocks:
        for line, words, tags in zip(block.lines, *(block.columns[i] for i in found), strict=True):
            columns = (tuple(words.split(" ")), tuple(tags.split(" ")))
            if len(columns[0]) != len(columns[1]):
                raise ValueError(
                    f"{table.path}:{line}: {counted(len(columns[0]), 'word')}, {counted(len(columns[1]), 'tag')}: "
                    f"{words[:40]!r}; write a tag for each word, with one space between them"
                )
            blocks.append(Block(columns, [line] * len(columns[0]), block.document))
    kind = f"each line is a sentence: its words in column {found[0] + 1}, their tags in column {found[1] + 1}"
    names = ("word", "tag") if table.names else ()
    return table._replace(blocks=blocks, names=names, notes=(*table.notes, (kind, str(table.path))))


def _rows(table: Table) -> list[tuple[str, ...]]:
    return [row for block in table.blocks for row in zip(*block.columns, strict=True)]


# Rows that hold no word -----------------------------------------------------------------------------------------------


def _without_header(table: Table) -> Table:
    """The table without lines that name its columns: the first row, and rows like it in files that were joined."""
    if table.names or not table.blocks:
        return table
    header = tuple([column[0] for column in table.blocks[0].columns])
    words, tags = ([bool(form.fullmatch(cell.upper())) for cell in header] for form in (_WORD_NAME, _TAG_NAME))
    if not any(words) or not any(tags):
        return table
    blocks, found = filtered(table.blocks, lambda row: row != header)
    kind = f"this line names the columns ({', '.join(header)}): not read as words"
    notes = tuple([(kind, f"{table.path}:{line}") for line, _ in found])
    return table._replace(blocks=blocks, names=header, notes=(*table.notes, *notes))


def _conllu_words_only(table: Table) -> Table:
    """The table without CoNLL-U's lines that are no words, where the first column counts as CoNLL-U does."""
    if not table.blocks or not any(block.columns[0][0][:1].isdecimal() for block in table.blocks):
        return table
    numbers = values_of(table.blocks, 0)
    if all(map(str.isdecimal, numbers)) or not all(map(_NUMBER.fullmatch, numbers)):
        return table
    width = len(table.blocks[0].columns)
    is_ids = table.names[0].upper() == "ID" if table.names else width == 10 or width > 2 and _counts_words(table)
    if not is_ids or not any(map(str.isdecimal, numbers)):
        return table
    blocks, others = filtered(table.blocks, lambda row: row[0].isdecimal())
    lines = counted(len(others), "line")
    kind = f"{lines} with a number such as 1-2 or 8.1 first, as CoNLL-U has beside its words: not read as words"
    notes = () if table.names or width == 10 else ((kind, f"{table.path}:{others[0][0]}"),)
    return table._replace(blocks=blocks, others=tuple(others), notes=(*table.notes, *notes))


def _counts_words(table: Table) -> bool:
    """Whether the integers of the first column are 1, 2, 3, … in every sentence."""
    for block in table.blocks:
        numbers = [int(cell) for cell in block.columns[0] if cell.isdecimal()]
        steps = {later - earlier for earlier, later in zip(numbers, numbers[1:], strict=False)}
        if not numbers or numbers[0] != 1 or not all(step == 1 or step < 0 for step in steps):
            return False
    return True


# Lines ----------------------------------------------------------------------------------------------------------------


def _line_ends(text: str, path: Path) -> tuple[str, bool]:
    """The text with LF as its only line end, and whether CR alone ended its lines."""
    text = text.replace("\r\n", "\n")
    if "\r" not in text:
        return text, False
    if "\n" not in text:
        return text.replace("\r", "\n"), True
    line = text[: text.index("\r")].count("\n") + 1
    # a line end written as CR CR LF has one too many; a lone CR is a line end of its own
    fix = "tr '\\r' '\\n'" if re.search("\r(?![\r\n])", text) else "tr -d '\\r'"
    raise ValueError(
        f"{path}:{line}: a carriage return inside a line of a file with other line ends too; write every line end as "
        f"LF, for instance with: {fix} < FILE > NEW"
    )


def _rows_of(lines: Iterable[str]) -> Iterator[str]:
    """The lines that are neither borders nor begin with #."""
    return (line for line in lines if not line.startswith("#") and not _is_border(line))


def _is_border(line: str) -> bool:
    return not line.strip(" \t") or line.startswith(BORDERS)


def _ends_in_tag(line: str) -> bool:
    return len(row := cells(line)) > 1 and _TYPED_TAG.fullmatch(row[-1]) is not None


def _may_be_row(line: str, width: int) -> bool:
    """Whether a comment could be a word: it ends in a tag, or has the columns of a row and a tag or a type in one."""
    row = cells(line)
    are_columns = "\t" in line and len(row) == width
    return _ends_in_tag(line) or are_columns and (any(map(_TYPED_TAG.fullmatch, row)) or row[-1].isalpha())


def _comments(
    some: list[Row], plain: list[str], names: tuple[str, ...], is_conll2012: bool
) -> Callable[[str, bool], bool]:
    """Whether a line that begins with # is a comment, as a function: "#" and "#tag" are words of many corpora.

    A comment where the first of several columns is a number or the file marks documents; else, at the start of a
    sentence, or a remark (`# …`) without a tab in a file of tabs. In all cases the line must not be a row, which has as
    many columns and ends in a tag, and without a space after the # in any cell that the rows end in.
    """
    width = len(some[0]) if some else 0
    # of all the first lines: a corpus whose first word is a year has hashtags, not comments
    counted = width > 2 and all(re.match(r"\d", row[0]) for row in some) or bool(names) and names[0].upper() == "ID"
    has_tabs = bool(plain) and "\t" in plain[0]
    last = {row[-1] for row in some}

    def is_comment(line: str, at_start: bool) -> bool:
        if line.startswith(_MARKS) or GLOBAL_COLUMNS.match(line):
            return True
        always = counted or is_conll2012
        is_remark = has_tabs and "\t" not in line and re.match("#+ ", line) is not None  # a row would have tabs
        if not always and not is_remark and not (at_start and width):
            return False
        row = cells(line)
        ends_in_tag = _SURE_TAG.fullmatch(row[-1]) or row[-1] in last and has_tabs
        if len(row) != width or has_tabs != ("\t" in line):
            return not (has_tabs and "\t" in line and _ends_in_tag(line))
        if always:
            return not ends_in_tag or not has_tabs and row[0] == "#"
        return re.match("#+ ", row[0]) is not None and not ends_in_tag

    return is_comment


def _is_quoted(lines: list[str]) -> bool:
    """Whether every cell with a quotation mark is in quotation marks, as Python's csv and pandas write them."""
    if "\t" not in next(_rows_of(lines), ""):
        return False
    # of most files the first of these lines decides
    if not all(map(_has_quoted_cells, _rows_of(line for line in lines if '"' in line))):
        return False
    lines = list(_rows_of(lines))
    marked = [line for line in lines if '"' in line]
    if not marked:
        return False
    rows = [_unquoted(line) for line in marked]
    width = len(next((line.split("\t") for line in lines if '"' not in line), rows[0]))
    some = any(match[0].strip('"') or len(match[0]) > 2 for line in marked for match in _QUOTED.finditer(line))
    return some and width > 1 and all(len(row) == width for row in rows)


def _has_quoted_cells(line: str) -> bool:
    at = 0
    while at < len(line):
        if line[at] == '"':
            if not (match := _QUOTED.match(line, at)) or line[match.end() : match.end() + 1] not in ("", "\t"):
                return False
            at = match.end() + 1
        else:
            end = line.find("\t", at)
            if '"' in line[at : end if end >= 0 else len(line)]:
                return False
            at = end + 1 if end >= 0 else len(line)
    return True


def _unquoted(line: str) -> Row:
    return next(csv.reader([line], delimiter="\t"))
