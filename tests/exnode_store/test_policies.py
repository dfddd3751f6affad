"""Policies: what may be typed, who inherits, and a tree that is put under another one in small steps."""

import stat

import pytest

from ibpfs.errors import NotADirectory, UsageError
from ibpfs.exnode_store.attributes import NewInode
from ibpfs.exnode_store.database import Database
from ibpfs.exnode_store.namespace import Namespace
from ibpfs.exnode_store.policies import Policies, Policy, changed, parse_labels
from ibpfs.exnode_store.policy_walks import PolicyWalks

DIRECTORY, FILE = NewInode(stat.S_IFDIR | 0o755, 0, 0), NewInode(stat.S_IFREG | 0o644, 0, 0)


@pytest.fixture
def policies(db: Database) -> Policies:
    with db.transaction():
        db.execute("INSERT INTO policies (id, copies, min_copies, labels, seq) VALUES (1, 2, 1, '[]', 1)")
        db.executemany(
            "INSERT INTO depots (address, embedded, labels, role, seq) VALUES (?, 0, '{}', ?, 1)",
            [("ibp://a:1", "active"), ("ibp://b:1", "active"), ("ibp://c:1", "active"), ("ibp://d:1", "draining")],
        )
    return Policies(db)


def test_min_copies_follow_copies_unless_they_are_set() -> None:
    policy = Policy(1, 2, 1)
    assert changed(policy, {"copies": "4"}, 4) == Policy(1, 4, 3)
    assert changed(policy, {"copies": "1"}, 4) == Policy(1, 1, 1)
    assert changed(policy, {"copies": "4", "min-copies": "1"}, 4) == Policy(1, 4, 1)
    assert changed(policy, {"labels": "site,owner,site"}, 2).labels == ("site", "owner")
    assert changed(Policy(1, 2, 1, ("site",)), {"labels": ""}, 2).labels == ()


@pytest.mark.parametrize(
    "settings",
    [{"copies": "0"}, {"copies": "5"}, {"copies": "x"}, {"copies": "-1"}, {"copies": "٣"}, {"copies": "99999"},
     {"min-copies": "3"}, {"min-copies": "0"}, {"labels": "a b"}, {"labels": "x" * 65}, {"colour": "blue"}],
)  # fmt: skip
def test_what_is_no_policy_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        changed(Policy(1, 2, 1), settings, 4)


def test_labels_of_a_depot() -> None:
    assert parse_labels(["site=knoxville", "owner=loci=1"]) == {"site": "knoxville", "owner": "loci=1"}
    for words in (["site"], ["=x"], ["site="], ["a b=c"], [f"n{at}=v" for at in range(9)]):
        with pytest.raises(UsageError):
            parse_labels(words)


def test_the_table_is_asked_once_for_each_policy(
    db: Database, policies: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert policies.get(7) == policies.get(1) == Policy(1, 2, 1)  # the default
    with db.transaction():
        db.execute("INSERT INTO policies (id, copies, min_copies, labels, seq) VALUES (7, 3, 2, '[]', 1)")
    assert (policies.get(7), policies.get(1)) == (Policy(7, 3, 2), Policy(1, 2, 1))
    with monkeypatch.context() as patch:
        patch.setattr(db, "row", lambda *_: pytest.fail("asked again"))
        assert (policies.get(7), policies.get(1)) == (Policy(7, 3, 2), Policy(1, 2, 1))
    with db.transaction():
        db.execute("UPDATE policies SET copies = 4 WHERE id = 7")
    assert policies.get(7) == Policy(7, 4, 2)


def test_what_is_made_in_a_directory_has_its_policy(names: Namespace, policies: Policies) -> None:
    outer = names.create(1, b"outer", DIRECTORY).ino
    before = names.create(outer, b"before", FILE).ino
    policy = policies.set(outer, {"copies": "3", "labels": "site"})
    inner = names.create(outer, b"inner", DIRECTORY).ino
    after = names.create(inner, b"after", FILE).ino
    assert policies.of(after) == policies.of(inner) == policies.of(outer) == Policy(policy.id, 3, 2, ("site",))
    assert policies.of(before) == policies.of(1) == Policy(1, 2, 1)
    assert policies.set(1, {"copies": "3", "labels": "site"}).id == policy.id
    assert policies.usual.copies == 3
    with pytest.raises(NotADirectory):
        policies.set(after, {"copies": "1"})
    with pytest.raises(UsageError, match="3 take new bytes"):
        policies.set(outer, {"copies": "4"})
    assert policies.most_copies == 3


def test_a_tree_is_walked_in_steps_that_survive_a_crash(db: Database, names: Namespace, policies: Policies) -> None:
    told: dict[int, int] = {}
    directories = [names.create(1, b"tree", DIRECTORY).ino]
    inos = set(directories)
    for number in range(900):
        inos.add(names.create(directories[-1], b"%d" % number, FILE).ino)
        if number % 300 == 0:
            directories.append(names.create(directories[-1], b"below", DIRECTORY).ino)
            inos.add(directories[-1])
    aside = names.create(1, b"aside", FILE).ino
    walks = PolicyWalks(db, policies)
    policy = walks.set(directories[0], {"copies": "1"}, recursive=True)
    while True:
        before = db.value("SELECT total_changes()")
        walks = PolicyWalks(db, Policies(db))  # as whoever owns the volume next
        walks.changed = told.update
        assert walks.to_settle() is None
        with pytest.raises(UsageError, match="try again"):
            walks.set(1, {"copies": "1"}, recursive=False)
        if not walks.step():
            break
        assert db.value("SELECT total_changes()") - before <= 1000
        if not walks.walking:
            break
    assert {ino for ino in inos if policies.of(ino).id == policy.id} == inos
    assert told == dict.fromkeys(inos - {directories[0]}, policy.id)
    assert policies.of(aside).id == 1
    assert walks.to_settle() == (0, 0)
    walks.settled(None)
    assert walks.to_settle() is None
