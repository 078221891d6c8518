"""No row of a label.csv is lost or changed in silence: it is read as it is meant, or named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmlf_llm.data.label_table import read_label_table
from deepmlf_llm.errors import DataError

HEADER = "video_id,clip_id,text,label,mode\n"
ROWS = "v0,1,hello there,1.5,train\nv0,2,bye,-1,valid\nv0,3,ok,0,test\n"
TABLE = HEADER + ROWS


def read(content, **settings):
    return read_label_table(content if isinstance(content, bytes) else content.encode(), Path("label.csv"), **settings)


WAYS = {
    "as it should be": TABLE,
    "with a BOM": "\ufeff" + TABLE,
    "put together of files with a BOM": "\ufeff\ufeff" + HEADER + "\ufeff" + ROWS.replace("\nv0,3", "\n\ufeffv0,3"),
    "semicolons": TABLE.replace(",", ";"),
    "tabs": TABLE.replace(",", "\t"),
    "Excel's sep line": "sep=;\n" + TABLE.replace(",", ";"),
    "CR only": TABLE.replace("\n", "\r"),
    "CRLF": TABLE.replace("\n", "\r\n"),
    "mixed line ends": TABLE.replace("\n", "\r\n", 2),
    "no line end": TABLE[:-1],
    "blank lines": HEADER + "\n" + ROWS + "\n  \n",
    "unnamed columns": HEADER.replace("\n", ",,\n") + ROWS.replace("\n", ",,\n"),
    "spaces behind the commas": TABLE.replace(",", ", "),
    "names in capitals": HEADER.upper() + ROWS,
    "all quoted": '"' + TABLE.strip().replace(",", '","').replace("\n", '"\n"') + '"\n',
    "splits under other names": TABLE.replace("valid", "dev").replace("train", "Train"),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_write_the_same_table(way):
    table = read(WAYS[way])
    assert [row["text"] for row in table.rows] == ["hello there", "bye", "ok"]
    assert [(row["video_id"], row["clip_id"]) for row in table.rows] == [("v0", "1"), ("v0", "2"), ("v0", "3")]
    assert table.numbers["label"] == [1.5, -1.0, 0.0]
    assert table.splits == ["train", "valid", "test"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ('"hello, you"', "hello, you"),
        ('"he said ""wow"""', 'he said "wow"'),
        ('he said "wow"', 'he said "wow"'),
        ("“hello”", "“hello”"),
        ("", ""),
        ("a\u2028b", "a\u2028b"),
    ],
)
def test_transcripts_come_as_they_are_meant(cell, text):
    assert read(TABLE + f"v1,1,{cell},1,train\n").rows[3]["text"] == text


def test_ids_stay_strings():
    assert [row["clip_id"] for row in read(HEADER + "v,0001,a,1,train\nv,1,b,1,train\n").rows] == ["0001", "1"]


def test_line_breaks_inside_quotes_are_counted_and_shown():
    table = read(HEADER + 'v1,1,"he said, a, b, c, d\nwow, e, f, g",1,train\nv1,2,"a\r\nb\nc",1,train\n' + ROWS)
    assert [row["text"] for row in table.rows][:2] == ["he said, a, b, c, d\nwow, e, f, g", "a\r\nb\nc"]
    assert table.lines == [2, 4, 7, 8, 9]
    assert table.notes == [
        "2 transcripts hold a line break inside their quotes, such as that of line 2: "
        "'he said, a, b, c, d\\nwow, e, f, g'"
    ]


UNCLOSED = {
    "to the end of the file": (TABLE + 'v1,1,"he said,1,train\n', 5),
    "in the last column": (TABLE + 'v1,1,he said,1,"train\nv1,2,a,1,train\n', 5),
    "in the header": ('video_id,clip_id,"text,label,mode\n' + ROWS, 1),
    "in an id": (HEADER + '"v1,1,he said,1,train\nv1,2,oh no,1,train\n' + ROWS, 2),
    "another quote in a later row": (HEADER + 'v1,1,"he,1,train\nv1,2,x,1,train\nv1,3,"oh" she,1,train\n' + ROWS, 2),
    "closed by chance, rows between": (HEADER + 'v1,1,"he,1,train\nv1,2,x,1,train\nv1,3,oh",1,train\n' + ROWS, 2),
    "closed by chance in the next row": (HEADER + 'v1,1,"he said,1,train\nv1,2,oh no",1,train\n' + ROWS, 2),
    "closed within a later transcript": (HEADER + 'v1,1,"he,1,train\nv1,2,oh" no,1,train\nv1,3,x,1,train\n' + ROWS, 2),
    "with commas of its own": (HEADER + 'v1,1,"he, wow,1,train\nv1,2,oh, no",1,train\n' + ROWS, 2),
    "doubled quotes in the next row": (HEADER + 'v1,1,"he,1,train\nv1,2,"she ""x""",1,train\n' + ROWS, 2),
    "transcripts in the last column": (
        'video_id,clip_id,label,mode,text\nv1,1,1,train,"he said\nv1,2,1,train,oh no"\nv1,3,1,test,x\n',
        2,
    ),
    "splits in the first column": ('mode,video_id,clip_id,text,label\ntrain,v,1,"he,1\ntrain,v,2,x",1\n', 2),
    "behind a line break of its own": (HEADER + 'v0,9,"a\nb",1,train\nv1,1,"he,1,train\nv1,2,x",1,train\n' + ROWS, 4),
    "longer than any transcript": (HEADER + 'v1,1,"he,1,train\n' + "v1,2,x,1,train\n" * 10_000, 2),
}


@pytest.mark.parametrize("place", UNCLOSED)
def test_a_quote_that_is_not_closed_is_refused_with_its_line(place):
    content, line = UNCLOSED[place]
    with pytest.raises(DataError, match=rf"line {line} opens a quote that is not closed there"):
        read(content)


FAULTS = {
    "text behind a quote": (TABLE + 'v1,1,"oh no" she said,1,train\n', "line 5: wrong quotes .* are doubled"),
    "an unquoted comma": (TABLE + "v1,1,hello, you,1,train\n", "expected 5 fields a row.*line 5 has 6"),
    "several": (TABLE + "a,1,b,c,1,test\na,2\na,3\na,4\n", "line 5 has 6, line 6 has 2, line 7 has 2 and 1 more"),
    "nothing": ("", "is empty, expected a header"),
    "blank": (" \n\n", "is empty, expected a header"),
    "a header alone": (HEADER, "has a header and no rows"),
    "no header": (ROWS, "lacks the columns video_id, clip_id, text, label, mode; it has v0, 1, hello"),
    "a misspelt column": (TABLE.replace("text", "txt"), r"lacks the columns text; text \(did you mean 'txt'\?\)"),
    "another word": (TABLE.replace("text", "Transcript"), r"text \(is 'Transcript' meant\?\)"),
    "a column twice": (TABLE.replace("clip_id", "text"), "lacks the columns clip_id"),
    "a column of text twice": (HEADER.replace("\n", ",text\n") + "v,1,a,1,test,b\n", "has the columns text twice"),
    "an id twice": (TABLE + "v0,1,again,1,train\n", r"row 5 repeats clip '1' of video 'v0' \(row 2\)"),
    "no id": (TABLE + "v1,,x,1,train\n", "row 5 has no clip_id"),
    "no split": (TABLE + "v1,1,x,1,\n", "row 5 has mode '', expected one of train, valid, test"),
    "a decimal comma": (TABLE + 'v1,1,x,"1,5",train\n', r"'1,5' in row 5 \(a decimal comma: write a point\)"),
    "decimal commas": (TABLE.replace(",", ";").replace("1.5", "1,5"), "'1,5' in row 2"),
    "another minus": (TABLE + "v1,1,x,−1.5,train\n", r"'−1.5' in row 5 \(no number\)"),
    "Python's underscore": (TABLE + "v1,1,x,1_0,train\n", "'1_0' in row 5"),
    "infinity": (TABLE + "v1,1,x,inf,train\n", "'inf' in row 5"),
    "no label": (TABLE + "v1,1,x,,train\n", "1 labels are not a number: nothing in column label of row 5"),
    "a label of nan": (TABLE + "v1,1,x,nan,train\n", "nothing in column label of row 5"),
    "an odd unimodal label": (
        HEADER.replace("\n", ",label_A\n") + "v,1,a,1,test,x\n",
        "column label_A holds what is not a number: 'x' in row 2",
    ),
    "Latin-1": ((TABLE + "v1,1,café,1,train\n").encode("latin1"), "line 5 holds the byte 0xe9 .Latin-1"),
    "UTF-16": (TABLE.encode("utf-16"), "it is UTF-16"),
    "UTF-16 without a mark": (TABLE.encode("utf-16-le"), "line 1 has a NUL byte"),
    "NUL": (TABLE + "v1,1,x\0y,1,train\n", "line 5 has a NUL byte"),
    "an endless field": (TABLE + f"v1,1,{'x' * 200_000},1,train\n", "line 5 has a field of more than 131072 letters"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_by_line(fault):
    content, message = FAULTS[fault]
    with pytest.raises(DataError, match=message):
        read(content)


def test_without_labels_an_empty_cell_is_allowed():
    table = read(TABLE + "v1,1,x,,train\n", labelled=False)
    assert table.numbers["label"][3] != table.numbers["label"][3]


def test_without_labels_no_column_of_labels_or_splits_is_needed():
    table = read("video_id,clip_id,text\nv,1,a\nv,2,b\n", labelled=False)
    assert table.splits == ["test", "test"]
    with pytest.raises(DataError, match="lacks the columns text; it has video_id, clip_id"):
        read("video_id,clip_id\nv,1\n", labelled=False)


def test_the_word_for_a_missing_transcript_is_noted():
    assert (
        "1 transcripts are the word for a missing value, such as that of line 5"
        in read(TABLE + "v1,1,nan,1,test\n").notes[0]
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text('ab ",;', max_size=6), min_size=1, max_size=6))
def test_every_row_is_read_or_the_table_is_refused(texts):
    """Whatever quotes stand in raw transcripts: never fewer rows than lines."""
    lines = "".join(f"v,{number},{text},1,train\n" for number, text in enumerate(texts))
    try:
        table = read(HEADER + lines)
    except DataError:
        return
    assert len(table.rows) == len(texts)
