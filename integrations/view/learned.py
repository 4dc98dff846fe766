"""Learned: all knowledge of one manager, stored with the local view."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ..roles import Balance, Session
from .amounts import SCALES, bare, nearly_equal, number_or_none, rounded
from .compared import Compared
from .decisions import PresentCode
from .effects import Effect, used_up
from .explanations import ABSENT, ARITHMETIC, EXACT, Space, Unknown, added, alike
from .learning import observe, observe_row
from .roundings import Roundings, Sums
from .row_forms import RowForms
from .rows import ORDERS, PARENT, POSITIONS, RESOLVED, Row, RowOrders, Tables, nested_rows
from .seen import NOT, Seen
from .tables_used import SideRows, Written

if TYPE_CHECKING:
    from ..operations import ManagerOperation
    from .decisions import Decision

_OBSERVED_AT_LEAST, _OBSERVED_AT_MOST = 3, 60


@dataclass(slots=True)
class Habits:
    """What a manager's methods do with sessions."""

    # operation -> whether the session is current after it was begun or ended.
    current: dict[str, bool] = field(default_factory=dict)
    # operation -> whether it was seen to go on with an active session instead of beginning one.
    resumes: dict[str, bool] = field(default_factory=dict)


class Learning:
    """What is known of a manager.  Not thread-safe: the view's lock is held."""

    def __init__(self) -> None:
        # Grows with each thing learned.
        self.version = 0
        self.effects: dict[str, Effect] = {}
        # The same for calls of one shape, whatever the values of their arguments.
        self.shapes: dict[str, Effect] = {}
        # Decimal places of the columns in which the manager keeps amounts.
        self.scales: set[int | None] = set()
        # Decimal places that a balance may have, by the answers alone.
        self.possible_scales: set[int | None] = set(SCALES)
        # The arithmetic in which the manager may add to a balance.
        self.sums = Sums()
        self.sums.roundings.scales = lambda: self.scales
        # read -> explanations of its answer by the exact balance.
        self.reads: dict[str, Space] = {}
        self.compared = Compared()
        # operation -> what its block yields: the container, and explanations by key.
        self.yields: dict[str, dict[str, Any]] = {}
        self.habits = Habits()
        # Sequence number -> the ids that a replay took for rows on the side, where none were noted at the call.
        self.taken: dict[int, dict[str, list[Any]]] = {}
        # Names of the tables of nested rows.
        self.nested: set[str] = set()
        self.row_orders = RowOrders()
        self.forms = RowForms()
        # "operation: limit" -> the class of the refusal, or in a list the answer that is one; None where the manager
        # was seen to accept.
        self.limits: dict[str, str | list[Any] | None] = {}
        # operation -> tables in which it was seen to change an open row where it makes a new one otherwise.
        self.merges: dict[str, list[str]] = {}
        # method -> the version of its code from which it was learned.
        self.code: dict[str, str] = {}
        # operation -> the comparisons by which its method decides; of the code, and not stored.
        self.decisions: Mapping[str, Collection[Decision]] = {}
        self.written = Written()
        self.present = PresentCode()

    @property
    def roundings(self) -> Roundings:
        """What the manager's own code rounds."""
        return self.sums.roundings

    def decide_by(self, decisions: Mapping[str, Collection[Decision]]) -> None:
        """Tell calls apart by these comparisons from now on."""
        self.version += 1
        self.decisions = decisions

    def follows(self, operation: ManagerOperation) -> bool:
        """Whether such calls may change what a local read shows."""
        return operation.has_role or self.written.follows(operation)

    def effect(self, seen: Seen) -> Effect | None:
        """What was learned of such calls; of a combination of values that is new, by the others of its shape."""
        own, shape = self.effects.get(seen.kind), self.of_shape(seen)
        if own is not None and own.count and (seen.given <= own.given or shape is None):
            return own
        if own is None and seen.ends and (other := self._of_less(seen)) is not None:
            return other
        new = [seen.outcomes.get(value) for value in self.new_values(seen)]
        known = shape is not None and shape.count and all(one is not None and one.only_counts for one in new)
        return shape if known else own

    def _of_less(self, seen: Seen) -> Effect | None:
        """What was learned of calls that took less of a row and ended it: so does this one.

        A call that takes less than one that did not end it leaves more than was seen: a position that was sold twice
        may have turned from long to short.
        """
        base, taken = seen.kind.removesuffix("|".join(("", *seen.ends))), set(seen.ends)
        for kind, effect in self.effects.items():
            theirs = set(kind.removeprefix(f"{base}|").split("|")) if kind.startswith(f"{base}|") else set()
            if {one.removeprefix(NOT) for one in theirs} != {one.removeprefix(NOT) for one in taken}:
                continue
            ended = {effect.removes.get(table) for table in seen.may_end}
            if effect.count and ended == {True} and not any(one.startswith(NOT) for one in taken - theirs):
                return effect
        return None

    def of_shape(self, seen: Seen) -> Effect | None:
        """What was learned of such calls, whatever the values of their arguments."""
        return self.shapes.get(seen.shape)

    def new_values(self, seen: Seen) -> list[str]:
        """Those of a call's values that no call of its shape was seen with."""
        shape = self.of_shape(seen)
        return [] if shape is None else [one for one in seen.values if one not in (shape.values or ())]

    def is_balance_as_declared(self, seen: Seen) -> bool | None:
        """Whether such calls made of the balance what is declared; None where none was seen."""
        effect = self.effect(seen)
        if effect is None:
            new = [seen.outcomes.get(value) for value in self.new_values(seen)]
            effect = self.of_shape(seen) if all(one is not None and not one.changes_amounts for one in new) else None
        return None if effect is None else effect.balance.of(seen.words)

    def _effects(self, seen: Seen) -> tuple[Effect, Effect]:
        """Where to learn of such calls."""
        shape = self.shapes.setdefault(seen.shape, Effect(values=set()))
        return self.effects.setdefault(seen.kind, Effect()), shape

    def wants(self, seen: Seen, *, sure: bool) -> bool:
        """Whether such a call should be looked at when it is delivered; `sure`: all that it did was known.

        What so many looks have not explained, the next one will not: each costs as much as a slow delivery.
        """
        effect = self.effects.get(seen.kind)
        if effect is None or effect.count < _OBSERVED_AT_LEAST or not seen.given <= effect.given:
            return True
        if effect.count >= _OBSERVED_AT_MOST:
            return False
        if seen.operation.balance is not None and effect.balance.is_new(seen.words):
            return True
        return not sure or (seen.touches_rows and not all(map(effect.knows, (POSITIONS, ORDERS))))

    def explains(self, seen: Seen) -> bool:
        """Whether all that such a call does is explained by now."""
        effect, name = self.effect(seen), seen.operation.name
        if effect is None or effect.unexplained() or self.roundings.finer(name, seen.places, effect.places):
            return False
        return seen.operation.balance is None or self.is_balance_as_declared(seen) is not None

    def scales_of_rows(self) -> tuple[int | None, ...]:
        """The decimal places with which values of rows may be shown."""
        return tuple(self.scales) if self.scales else SCALES

    def balance_after(self, operation: ManagerOperation, old: Decimal | None, amount: Any) -> Decimal:
        """The balance after a call, rounded as the manager keeps it.  Raises `Unknown`."""
        change = number_or_none(amount)
        if change is None or (old is None and operation.balance is not Balance.SET):
            raise Unknown("the balance before it is not known")
        possible = self.sums.pairs(self.possible_scales)
        # The code rounds before the column does.
        sums = {sum_: _balance(operation, old, change, sum_) for sum_, _ in possible}
        made = {sum_: self.roundings.made(operation.name, one) for sum_, one in sums.items()}
        found = {rounded(one, scale) for sum_, scale in possible for one in made[sum_]}
        if len(found) > 1:
            raise Unknown(f"how many decimal places the balance has is not known, and it may be {min(found)}")
        return found.pop()

    def is_balance(self, one: Decimal, other: Decimal) -> bool:
        """Whether two balances are one, but for the arithmetic in which they were summed."""
        if self.roundings.hides_balance:
            return self.roundings.is_shown_as(one, other)
        scale = next(iter(self.possible_scales)) if len(self.possible_scales) == 1 else None
        return nearly_equal(one, other, scale)

    # -- learning

    def learn(self, seen: Seen, after: Tables) -> None:
        """Take in what a call did to the rows of its session."""
        self.version += 1
        self.learn_shown(after, seen.tables)
        for effect in self._effects(seen):
            news = {f"arg:{one[:-1]}" for one in seen.given - effect.given if one.endswith("+")}
            new = news if effect.count else set()
            effect.count += 1
            effect.given |= seen.given
            effect.letters |= seen.letters
            effect.places |= {name: max(count, effect.places.get(name, 0)) for name, count in seen.places.items()}
            if effect.values is not None:
                effect.values |= set(seen.values)
            understood = seen.tables.keys() & after
            if not seen.touches_rows:
                effect.strangers |= {one for one in understood if not alike(seen.tables[one], after[one])}
                continue
            tables = sorted({*seen.tables, *after} - {RESOLVED})
            for table in (one for one in tables if one.partition(".")[0] in understood):
                self._learn_table(effect, seen, table, after.get(table, {}), after.get(POSITIONS, {}), new)

    def _learn_table(self, effect: Effect, seen: Seen, table: str, after: Any, positions: Any, new: set[str]) -> None:
        before, named = seen.tables.get(table, {}), seen.named(table)
        made = [id_ for id_ in after if id_ not in before]
        gone = [id_ for id_ in before if id_ not in after and before[id_].get(PARENT) in (None, *positions)]
        changed = [id_ for id_ in before if id_ in after and not alike(before[id_], after[id_])]
        if len(made) > 1 or not set(gone + changed) <= set(named):
            if seen.opens(table) and not made:
                self.merges[seen.operation.name] = sorted({table, *self.merges.get(seen.operation.name, ())})
            else:
                effect.strangers.add(table)
            return
        if effect.values is None:
            effect.strangers.discard(table)
        effect.makes[table] = _consistent(effect.makes, table, bool(made))
        for id_ in made:
            self._learn_row(effect.made.setdefault(table, {}), seen, table, after[id_], None, seen.sources(), new)
        for id_ in named:
            effect.removes[table] = _consistent(effect.removes, table, id_ in gone)
            if id_ in after:
                effect.zeros |= {f"{table}.{key}" for key in used_up(seen, before[id_], after[id_])}
                spaces = effect.changed.setdefault(table, {})
                sources = seen.sources((table, before[id_]))
                self._learn_row(spaces, seen, table, after[id_], before[id_], sources, new)
                for key, space in spaces.items():
                    space.settle(seen.written, sources, before[id_].get(key, ABSENT))

    def learn_declined(self, seen: Seen) -> None:
        """Take in that the manager declined such a call, and changed nothing: it may ask more than the call shows."""
        self.version += 1
        known = (self.effects.get(seen.kind), self.shapes.get(seen.shape)) if seen.touches_rows else ()
        for effect in (one for one in known if one is not None and one.count):
            for table, rows in seen.tables.items():
                for id_ in seen.named(table) if table != RESOLVED else ():
                    spaces, sources = effect.changed.setdefault(table, {}), seen.sources((table, rows[id_]))
                    self._learn_row(spaces, seen, table, rows[id_], rows[id_], sources, set())

    def _learn_row(
        self,
        spaces: dict[str, Space],
        seen: Seen,
        table: str,
        row: Row,
        old: Row | None,
        sources: dict[str, Any],
        new: set[str],
    ) -> None:
        id_ = seen.key(table)
        # The id that the caller was told is that of the row which the declaration lets the call make.
        of_ids: dict[str, dict[str, Any]] = {}
        for key, makes in ((id_, seen.opens(table)), (PARENT, seen.opens(POSITIONS))) if old is None else ():
            other = () if seen.opens_both else ("note:side:",) if makes else ("note:id",)
            strange = ("note:session", *other)
            of_ids[key] = {name: value for name, value in sources.items() if not name.startswith(strange)}
        names, scales = seen.standard_names(table, row), self.scales_of_rows()
        if self.roundings.in_rows(seen.operation.name):
            scales = tuple(dict.fromkeys((*scales, *SCALES[1:])))
        observe_row(spaces, names, row, old, sources, of_ids, scales=scales, new=new, given=seen.signature)

    def learn_balance(self, seen: Seen, old: Any, shown: Any) -> None:
        """Take in what a call did to the balance."""
        before, after = number_or_none(old), number_or_none(shown)
        operation = seen.operation
        if after is None:
            return
        if operation.session is Session.BEGINS:
            for effect in self._effects(seen):
                observe(effect.start, "balance", shown, seen.sources(), scales=self.scales_of_rows())
            return
        if operation.balance is None:
            self._learn_whether(seen, before == after)
            return
        change = number_or_none(seen.amount)
        if change is None:
            return
        totals = {sum_: _balance(operation, before, change, sum_) for sum_ in ARITHMETIC}
        fitting = {(sum_, scale) for sum_ in ARITHMETIC for scale in SCALES if rounded(totals[sum_], scale) == after}
        self.sums.observe(fitting)
        self.roundings.observe(operation.name, {scale for _, scale in fitting})
        if isinstance(shown, Decimal):
            # It is shown with as many decimal places as it has.
            fitting = {one for one in fitting if alike(rounded(totals[one[0]], one[1]), shown)} or fitting
        written = {sum_ for sum_, _ in fitting if totals[sum_] in seen.written} or set(ARITHMETIC)
        sums = {sum_ for sum_, _ in fitting if sum_ in written}
        # Where one operation adds otherwise than another, either is possible.
        self.sums.possible = (self.sums.possible & sums) or set(ARITHMETIC)
        scales = {scale for _, scale in fitting} or {
            scale for scale in SCALES if nearly_equal(rounded(totals[EXACT], scale), after)
        }
        self._learn_whether(seen, bool(scales))
        self.possible_scales = (self.possible_scales & scales) or self.possible_scales

    def _learn_whether(self, seen: Seen, as_declared: bool) -> None:
        if as_declared and number_or_none(seen.amount) == 0 and seen.operation.balance is Balance.CHANGE:
            # No change is none in any balance.
            return
        for effect in self._effects(seen):
            effect.balance.observe(seen.words, fits=as_declared, lasting=effect.values is not None)

    def learn_beside(self, seen: Seen, argument: str) -> None:
        """Such a call has changed another session, which this argument names."""
        for effect in self._effects(seen):
            effect.beside.add(argument)

    def merged(self, seen: Seen) -> dict[tuple[str, Any, str], str]:
        """What is not known behind a call that may add to an open row instead of making one."""
        why = f"{seen.operation.name} was seen to change an open row instead of making one"
        tables = self.merges.get(seen.operation.name, ())
        return {(table, None, "*"): why for table in tables if seen.tables.get(table)}

    def learn_shown(self, tables: Tables, before: Tables | None = None) -> None:
        """Take in how the manager shows the rows of a session, and showed them before one call."""
        self.nested |= {table for table in tables if "." in table}
        for table, rows in tables.items():
            parents = tables[POSITIONS] if "." in table else ()
            for shown in [nested_rows(tables, table, id_) for id_ in parents] or [list(rows.values())]:
                earlier = None if before is None else before.get(table, {})
                self.row_orders.observe(table, shown, self.forms.key(table), earlier)

    def learn_answer(self, read: str, balance: Decimal, shown: Any) -> None:
        """Take in how a read shows a balance."""
        space = self.reads.setdefault(read, Space())
        # The balance is rounded already; a read that rounds once more has to be seen doing so.
        is_exact = number_or_none(shown) == balance and not isinstance(shown, Decimal | str)
        is_exact = is_exact and not self.roundings.rounds(read)
        observe(space, "balance", shown, {"note:balance": bare(balance)}, scales=(None,) if is_exact else SCALES)

    def has_sides(self, operation: ManagerOperation) -> bool:
        """Whether a call may write rows with a reserved id on the side, as far as was seen."""
        return self.written.side_rows.knows(operation.name)

    def sides(self, name: str, seen: Callable[[], Seen], bound: Mapping[str, Any]) -> dict[str, int]:
        """How many rows with a reserved id a call with the arguments `bound` may write on the side."""
        rows = self.written.side_rows
        found = rows.of_all(name)
        found = self._sides_seen(seen()) if found is None else found
        return rows.fewest(name) | dict(found) | rows.by_size(name, bound)

    def _sides_seen(self, seen: Seen) -> Mapping[str, int]:
        """As many as were seen of such calls; of a new kind, as many as others did."""
        effect = self.effect(seen)
        if effect is not None and effect.count and seen.given <= effect.given:
            return effect.sides
        name, found = seen.operation.name, dict[str, int]()
        for shape in (shape for key, shape in self.shapes.items() if key.split("|")[0] == name):
            found |= {column: max(count, found.get(column, 0)) for column, count in shape.sides.items()}
        return found

    def learn_sides(self, seen: Seen, taken: Mapping[str, int]) -> None:
        """Take in how many rows with a reserved id a call wrote on the side."""
        for effect in self._effects(seen):
            sides = {column: max(count, effect.sides.get(column, 0)) for column, count in taken.items()}
            effect.sides = sides if effect.values is None else effect.sides | sides
        self._agree_on_sides()

    def _agree_on_sides(self) -> None:
        found: dict[str, list[Mapping[str, int]]] = {}
        for kind, effect in (*self.effects.items(), *self.shapes.items()):
            found.setdefault(kind.partition("|")[0], []).append(effect.sides)
        for name, sides in found.items():
            self.written.side_rows.agree(name, sides)

    # -- durability

    def dump(self) -> dict[str, Any]:
        """The state, to be stored."""
        return {
            "effects": {kind: effect.dump() for kind, effect in self.effects.items()},
            "shapes": {shape: effect.dump() for shape, effect in self.shapes.items()},
            "scales": sorted(self.scales, key=str), "possible_scales": sorted(self.possible_scales, key=str),
            "reads": {name: space.dump() for name, space in self.reads.items()}, "agrees": self.compared.agrees,
            "yields": {name: {**one, "keys": {key: space.dump() for key, space in one["keys"].items()},
                              "order": list(one["keys"])} for name, one in self.yields.items()},
            "current": self.habits.current, "limits": self.limits, "nested": sorted(self.nested), "taken": self.taken,
            "orders_shown": self.row_orders.dump(), **self.sums.dump(),
            "forms": self.forms.dump(), "merges": self.merges, "resumes": self.habits.resumes, "code": self.code,
            "written": self.written.dump(), "roundings": self.roundings.dump(),
            "side_rows": self.written.side_rows.dump(), "compared": self.compared.dump(),
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `dump` gave."""
        self.version += 1
        self.effects = {kind: Effect.load(effect) for kind, effect in state["effects"].items()}
        self.shapes = {shape: Effect.load(effect) for shape, effect in state.get("shapes", {}).items()}
        self.scales, self.possible_scales = set(state["scales"]), set(state["possible_scales"])
        self.reads = {name: Space(*space) for name, space in state["reads"].items()}
        self.limits = state["limits"]
        self.compared = Compared(state.get("compared"), agrees=state["agrees"])
        self.nested, self.taken = set(state["nested"]), state["taken"]
        self.row_orders.load(state.get("orders_shown", {}))
        self.forms.load(state.get("forms", {}))
        self.merges, self.code = state.get("merges", {}), state.get("code", {})
        self.habits = Habits(state["current"], state.get("resumes", {}))
        self.written.load(state.get("written", {}))
        self.written.side_rows = SideRows(state.get("side_rows"))
        self._agree_on_sides()
        roundings = self.roundings
        roundings.load(state.get("roundings", {}))
        self.sums = Sums.load(state)
        self.sums.roundings = roundings
        # What is stored has its keys sorted.
        self.yields = {
            name: {**one, "keys": {key: Space(*one["keys"][key]) for key in one.get("order", one["keys"])}}
            for name, one in state["yields"].items()
        }

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Take over what another store has learned; what its tables and its program's past have shown is left out.

        Each kind of call is learned from a few times more, in case this database is another after all.
        """
        self.load(state)
        self.taken, self.compared.agrees = {}, {}
        for effect in (*self.effects.values(), *self.shapes.values()):
            effect.count = min(effect.count, 1)


def _consistent(known: Mapping[str, bool | None], table: str, seen: bool) -> bool | None:
    return seen if known.get(table, seen) is seen else None


def _balance(operation: ManagerOperation, old: Decimal | None, change: Decimal, sum_: str) -> Decimal:
    return change if operation.balance is Balance.SET else added(old or 0, change, sum_)
