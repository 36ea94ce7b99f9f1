"""Claims about the boards of games of two.

Of a move that is evaluated (Q^L) the position after it is looked at, otherwise the position itself. "own" and the first
of two counts are those of the seat that the evaluation is made for. Who would win or capture at once is asked as if it
were their turn, and not at all once the move has ended the game: such claims stay unchecked. A list in the fixed words
of the `compact` set is taken for complete: what it leaves out is counted as omitted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from nlrl.evaluate.claims import COUNT, Check, Checked, Claim, check_text, list_of, listed, number_of, said_in
from nlrl.evaluate.claims_common import check_figures, check_games, worth_claim
from nlrl.evaluate.reading import read_board
from nlrl.types import Evaluation
from nlrl_envs.board_game import BoardGame, Position, bits
from nlrl_envs.tic_tac_toe import LINES


@dataclass(frozen=True)
class Seen:
    """The position that an evaluation speaks of."""

    game: BoardGame
    position: Position
    player: int
    """The seat it is made for."""

    def seat(self, name: str) -> int:
        """The seat with this name, in any case of letters."""
        return [seat.casefold() for seat in self.game.seats].index(name.casefold())

    def squares(self, seat: int) -> int:
        """Its squares, as a set."""
        return (self.position.first, self.position.second)[seat]

    @property
    def over(self) -> bool:
        """Whether the move has ended the game."""
        return self.position.result is not None

    def wins(self, seat: int) -> set[str]:
        """The moves with which a seat would win at once, if it were its turn; the game goes on."""
        there = self.position._replace(seat=seat)
        moves = self.game.legal_moves(there).items()
        return {move for move, number in moves if self.game.play(there, number).result == 1 - 2 * seat}

    def captures(self, seat: int) -> list[str]:
        """The squares on which a seat could capture, once a move, if it were its turn; the game goes on."""
        moves = self.game.legal_moves(self.position._replace(seat=seat))
        return [move[2:4] for move in moves if move.endswith("*")]

    def foremost(self, seat: int) -> int:
        """The row in which the most advanced pawn stands, from the bottom; 0 without pawns."""
        rows = [self.game.grid[0] - self.game.cell(s)[0] for s in bits(self.squares(seat))]
        return (max(rows) if seat else min(rows)) if rows else 0

    def to_go(self, seat: int) -> int:
        """Rows between the most advanced pawn and the far row."""
        row = self.foremost(seat)
        return self.game.grid[0] - row if seat else row - 1


def seen(evaluation: Evaluation, env_id: str) -> Seen:
    """The position an evaluation speaks of."""
    game, position = read_board(env_id, evaluation.situation.history[-1])
    if evaluation.action is not None:
        position = game.play(position, game.legal_moves(position)[evaluation.action])
    return Seen(game, position, game.seats.index(evaluation.situation.player))


def _lists(view: Seen, wins: str, loses: str) -> tuple[list[Claim], int]:
    """The fixed lists "Wins at ...", "Loses at ...": claims, and how many squares were left out."""
    claims: list[Claim] = []
    omitted = 0
    if view.over:
        return claims, omitted
    for kind, text, seat in (("win", wins, view.player), ("loss", loses, 1 - view.player)):
        said, true = listed(text, r"\d"), view.wins(seat)
        claims += [Claim(kind, square, square in true) for square in said]
        if not said:
            claims.append(Claim(kind, "none", not true))
        else:
            omitted += len(true - set(said))
    return claims, omitted


def _clipped(value: float) -> float:
    return min(max(round(value, 2), -1.0), 1.0)


_TTT = re.compile(r"Wins at ([\d, ]+|none)\. Loses at ([\d, ]+|none)\. Centre (own|other|empty)\. Worth \S+")
_FOUR = re.compile(r"Wins in ([\d, ]+|none)\. Loses in ([\d, ]+|none)\. Middle (\d+) to (\d+)\. Worth \S+")
_PAWNS = re.compile(r"Pawns (\d+) to (\d+)\. Rows to go (\d) to (\d)\. Captures (\d+) to (\d+)\. Worth \S+")


def _centre(view: Seen) -> str:
    owner = next((seat for seat in (0, 1) if view.squares(seat) >> 4 & 1), None)
    return "empty" if owner is None else "own" if owner == view.player else "other"


def _fixed_tic_tac_toe(view: Seen, evaluation: Evaluation, match: re.Match[str]) -> Checked:
    claims, omitted = _lists(view, match[1], match[2])
    claims.append(Claim("centre", match[3], match[3] == _centre(view)))
    worth = 0.3 * (len(listed(match[1], r"\d")) - len(listed(match[2], r"\d"))) + 0.1 * (match[3] == "own")
    return Checked((*claims, worth_claim(evaluation, _clipped(worth))), 4, 2 * view.over, 0, omitted)


def _fixed_connect_four(view: Seen, evaluation: Evaluation, match: re.Match[str]) -> Checked:
    claims, omitted = _lists(view, match[1], match[2])
    said = int(match[3]), int(match[4])
    claims += [
        Claim("middle", str(n), n == _middle(view, seat))
        for n, seat in zip(said, (view.player, 1 - view.player), strict=True)
    ]
    worth = 0.3 * (len(listed(match[1], r"\d")) - len(listed(match[2], r"\d"))) + 0.1 * (said[0] - said[1])
    return Checked((*claims, worth_claim(evaluation, _clipped(worth))), 4, 2 * view.over, 0, omitted)


def _fixed_breakthrough(view: Seen, evaluation: Evaluation, match: re.Match[str]) -> Checked:
    numbers, claims = [int(text) for text in match.groups()], []
    facts = ("pawns", lambda s: view.squares(s).bit_count()), ("rows", view.to_go), ("captures", _count(view))
    for i, (kind, fact) in enumerate(facts[: 2 if view.over else 3]):
        for n, seat in zip(numbers[2 * i : 2 * i + 2], (view.player, 1 - view.player), strict=True):
            claims.append(Claim(kind, str(n), fact(seat) == n))
    worth = 0.1 * (numbers[0] - numbers[1] + numbers[3] - numbers[2] + numbers[4] - numbers[5])
    return Checked((*claims, worth_claim(evaluation, _clipped(worth))), 4, int(view.over), 0)


def _count(view: Seen) -> Callable[[int], int]:
    return lambda seat: len(view.captures(seat))


def _middle(view: Seen, seat: int) -> int:
    """Stones of a seat in the middle column, the right one of two."""
    return sum(view.game.cell(s)[1] == view.game.grid[1] // 2 for s in bits(view.squares(seat)))


Fixed = Callable[[Seen, Evaluation, re.Match[str]], Checked]


def _checked(
    evaluation: Evaluation,
    env_id: str,
    form: re.Pattern[str],
    fixed: Fixed,
    free: Callable[[Seen], list[tuple[str, Check]]],
) -> Checked:
    if (of_games := check_games(evaluation)) is not None:
        return of_games
    view = seen(evaluation, env_id)
    if match := form.fullmatch(evaluation.value.text.strip()):
        return fixed(view, evaluation, match)
    patterns = [(re.compile(pattern), check) for pattern, check in free(view)]
    text = said_in(evaluation.reply, evaluation.value.text)
    return check_text(text, [*check_figures(evaluation, view.game.seats), *patterns])


def check_tic_tac_toe(evaluation: Evaluation) -> Checked:
    """Squares that win, lines that are open, who holds what."""
    return _checked(evaluation, "tic_tac_toe", _TTT, _fixed_tic_tac_toe, _free_tic_tac_toe)


def check_connect_four(evaluation: Evaluation) -> Checked:
    """Columns that win, threes, who has stones where."""
    return _checked(evaluation, "connect_four", _FOUR, _fixed_connect_four, _free_connect_four)


def check_breakthrough(evaluation: Evaluation) -> Checked:
    """Pawns, captures, how far the foremost pawns are."""
    return _checked(evaluation, "breakthrough", _PAWNS, _fixed_breakthrough, _free_breakthrough)


def _wins_at(view: Seen, item: str) -> Check:
    def check(match: re.Match[str]) -> list[Claim]:
        if view.over:
            return []
        true = view.wins(view.seat(match["who"]))
        return [Claim("win", square, square in true) for square in listed(match["list"], item)]

    return check


def _nobody_wins(view: Seen) -> Check:
    return lambda match: [] if view.over else [Claim("win", match[0], not view.wins(0) and not view.wins(1))]


def _turn(view: Seen) -> Check:
    return lambda match: [Claim("turn", match[0], view.seat(match["who"]) == view.position.seat)]


def _empty(view: Seen) -> set[int]:
    return {s for s in range(9) if not (view.squares(0) | view.squares(1)) >> s & 1}


def _free_tic_tac_toe(view: Seen) -> list[tuple[str, Check]]:
    who, squares = r"\b(?P<who>[OX])", list_of("[1-9]")

    def marks(match: re.Match[str]) -> list[Claim]:
        mine = view.squares(view.seat(match["who"]))
        return [Claim("mark", s, bool(mine >> int(s) - 1 & 1)) for s in listed(match["list"], "[1-9]")]

    def centre(match: re.Match[str]) -> list[Claim]:
        return [Claim("centre", match[0], bool(view.squares(view.seat(match["who"])) >> 4 & 1))]

    def open_lines(match: re.Match[str]) -> list[Claim]:
        other = view.squares(1 - view.seat(match["who"]))
        lines = [tuple(int(n) - 1 for n in line) for line in re.findall(r"(\d), (\d), (\d)", match["list"])]
        return [Claim("line", str(n), tuple(sorted(n)) in LINES and not any(other >> s & 1 for s in n)) for n in lines]

    def threat(match: re.Match[str]) -> list[Claim]:
        seats = [view.seat(match["who"])] if match["who"] else [0, 1]
        line = {int(n) - 1 for n in match["line"].split(", ")}
        mine = [{s for s in line if view.squares(seat) >> s & 1} for seat in seats]
        completes = any(len(own) == 2 and line - own <= _empty(view) for own in mine)
        return [Claim("win", match["line"], tuple(sorted(line)) in LINES and completes)]

    line = r"[1-9], [1-9], [1-9]"
    return [
        (rf"[Ll]ines? (?P<list>{list_of(line)}) (?:is|are)(?: still)? open to (?P<who>[OX])", open_lines),
        (r"\b(?:Neither player|Nobody|No one|Neither side) can complete a line(?: with one mark)?", _nobody_wins(view)),
        (
            rf"{who} (?:then )?(?:can |could |would |will )?(?:complete|win|threaten)s?(?: to (?:complete|win))?"
            rf"(?: a line)?(?: at once)? (?:at|with|on|by)(?: square)?s? (?P<list>{squares})",
            _wins_at(view, "[1-9]"),
        ),
        (rf"{who} (?:then |is to move, )?(?:holds|has|takes|occupies) the cent(?:re|er)", centre),
        (rf"{who} in the cent(?:re|er)", centre),
        (
            rf"{who} (?:then )?(?:holds|has|occupies)(?: both)?(?: the)?(?: corners?| squares?| edges?)?"
            rf"(?: on| at)? (?P<list>{squares})\b",
            marks,
        ),
        # Its subject may have stood in a claim before it, "X holds 2 and 5 and threatens to complete 2, 5, 8".
        (rf"(?:{who} (?:then )?)?threat\w* to complete (?P<line>{line})", threat),
        (rf"{who} is to move", _turn(view)),
    ]


def _free_connect_four(view: Seen) -> list[tuple[str, Check]]:
    who, columns = r"\b(?P<who>[xo])", list_of("[1-8]")
    rows = view.game.grid[0]

    def stones(match: re.Match[str]) -> list[Claim]:
        cells = {view.game.cell(s) for s in bits(view.squares(view.seat(match["who"])))}
        bottom = "bottom row" in match.string
        return [
            Claim("mark", c, any(column == int(c) - 1 and (row == rows - 1 or not bottom) for row, column in cells))
            for c in listed(match["list"], "[1-8]")
        ]

    def either(match: re.Match[str]) -> list[Claim]:
        true = set() if view.over else view.wins(0) | view.wins(1)
        return [] if view.over else [Claim("win", c, c in true) for c in listed(match["list"], "[1-8]")]

    return [
        (r"\b(?:Neither player|Nobody|No one|Neither side) can complete four(?: in a row)?", _nobody_wins(view)),
        (
            rf"{who} (?:then )?(?:can |could |would |will )?(?:complete|win|threaten)s?(?: to (?:complete|win))?"
            rf"(?: four(?: in a row)?)?(?: at once)? (?:in|with|at|by)(?: column)?s? (?P<list>{columns})",
            _wins_at(view, "[1-8]"),
        ),
        (rf"[Cc]olumns? (?P<list>{columns}) (?:both |each |would )*(?:complete|win)s?(?: four)?", either),
        (rf"{who} (?:then )?(?:has|holds)[^.;]*? in columns? (?P<list>{columns})", stones),
        (rf"{who} is to move", _turn(view)),
    ]


def _free_breakthrough(view: Seen) -> list[tuple[str, Check]]:
    who, square = r"\b(?P<who>[Ww]hite|[Bb]lack)", r"(?:on )?[a-h][1-8]"

    def pawns(match: re.Match[str]) -> list[Claim]:
        seat = view.seat(match["who"])
        counts = [(seat, match["n"])] + ([(1 - seat, match["m"])] if match["m"] else [])
        return [Claim("pawns", n, view.squares(s).bit_count() == number_of(n)) for s, n in counts]

    def ahead(match: re.Match[str]) -> list[Claim]:
        seat = view.seat(match["who"])
        lead = view.squares(seat).bit_count() - view.squares(1 - seat).bit_count()
        lead = -lead if match["way"] in ("behind", "down") else lead
        return [Claim("pawns", match[0], lead == number_of(match["n"]))]

    def captures(match: re.Match[str]) -> list[Claim]:
        true = [] if view.over else view.captures(view.seat(match["who"]))
        return [] if view.over else [Claim("captures", s, s in true) for s in listed(match["list"], "[a-h][1-8]")]

    def foremost(match: re.Match[str]) -> list[Claim]:
        seats = [view.seat(match["who"])] if match["who"] else [0, 1]
        row = int(match["row"])
        return [Claim("rows", match["row"], view.foremost(seat) == row) for seat in seats]

    def past(match: re.Match[str]) -> list[Claim]:
        seat, row = view.seat(match["who"]), int(match["row"])
        here = view.foremost(seat)
        return [Claim("rows", match[0], here <= row if seat else here >= row)]

    side = r"(?P<who>[Ww]hite|[Bb]lack)"
    return [
        (rf"{who} (?:then )?has (?P<n>{COUNT}) pawns?(?: (?:against|to) (?P<m>{COUNT}))?", pawns),
        (rf"{who} (?:then )?has (?P<n>{COUNT})(?P<m>)(?=[,;]|$)", pawns),
        (rf"{who} is (?P<n>{COUNT}) pawns? (?P<way>ahead|up|behind|down)", ahead),
        (
            rf"(?:If )?{who}(?:(?![Ww]hite|[Bb]lack)[^.;])*?captur(?:e|es|ing)(?: a pawn)? (?P<list>{list_of(square)})",
            captures,
        ),
        (rf"foremost pawn of (?:either side|{side}) (?:stands|is) (?:in|on) row (?P<row>[1-8])", foremost),
        (rf"no {side} pawn is past row (?P<row>[1-8])", past),
        (rf"{who} is to move", _turn(view)),
    ]
