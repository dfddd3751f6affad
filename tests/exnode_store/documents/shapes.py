"""exNodes of any shape, for tests of all notations; and where the samples are."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ibpfs.depot.capability import Capability, CapabilityKind
from ibpfs.exnode_store.documents.exnode import ExNode, Function, Mapping, Metadata

SAMPLES = Path(__file__).parent / "samples"

MICRO = 1_000_000
characters = st.characters(min_codepoint=32, max_codepoint=0xFFFD, exclude_categories=["Cs"])
texts = st.text(characters, min_size=1, max_size=20)
keys = st.text("abcXYZ0189#+-", min_size=1, max_size=20)
lengths = st.integers(0, 2**40)
#: Hours of UTC seconds: a local time that exists twice would come back as the other one.
present = st.integers(300_000, 600_000).map(lambda hour: hour * 3600 * MICRO)
moments = st.none() | present
json_values: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
fields = st.dictionaries(texts.map(lambda name: f"x-{name}"), json_values, max_size=3)


def capabilities(kind: CapabilityKind) -> st.SearchStrategy[Capability]:
    return st.builds(
        lambda host, port, key, type_key: Capability(host, port, key, str(type_key), kind),
        st.sampled_from(["127.0.0.1", "depot.example.org", "::1"]),
        st.integers(1, 65535),
        keys,
        st.integers(0, 2**31 - 1),
    )


leaves = st.one_of(
    st.builds(Metadata, texts.map("m-".__add__), st.just("string"), texts),
    st.builds(Metadata, texts.map("m-".__add__), st.just("integer"), st.integers(-(2**63), 2**63 - 1)),
    st.builds(Metadata, texts.map("m-".__add__), st.just("double"), st.integers(-1000, 1000).map(float)),
)
nested = st.builds(
    Metadata, texts.map("m-".__add__), st.just("meta"), st.lists(leaves, min_size=1, max_size=2).map(in_order := (
        lambda found: tuple(sorted(found, key=lambda one: one.name)))))  # fmt: skip
metadata = st.lists(leaves | nested, max_size=3).map(in_order)

functions = st.recursive(
    st.builds(Function, texts, metadata, metadata),
    lambda inner: st.builds(Function, texts, metadata, metadata, inner),
    max_leaves=3,
)


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    length = draw(lengths)
    return Mapping(
        offset=draw(lengths),
        length=length,
        alloc_offset=draw(lengths),
        alloc_length=length + draw(st.integers(0, 100)),
        clear_block=draw(lengths),
        function=draw(st.none() | functions),
        read=draw(capabilities(CapabilityKind.READ)),
        write=draw(st.none() | capabilities(CapabilityKind.WRITE)),
        manage=draw(st.none() | capabilities(CapabilityKind.MANAGE)),
        start=draw(moments),
        end=draw(moments),
        metadata=draw(metadata),
        fields=draw(fields),
    )


exnodes = st.builds(
    ExNode,
    name=texts,
    size=lengths,
    mode=st.sampled_from(["file", "directory"]),
    created=moments,
    modified=present,
    mappings=st.lists(mappings(), max_size=4).map(tuple),
    metadata=metadata,
    fields=fields,
)
