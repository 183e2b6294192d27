"""What `ft data` prints: what will be trained on, for a person or a program."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from fitune.cli.printing import say_json
from fitune.cli.progress import Progress
from fitune.cli.text_console import TextConsole
from fitune.data.cache import META
from fitune.data.prepare import Prepared, context_of, held_out_data, training_data
from fitune.data.preview import Preview, Previews
from fitune.data.survey import shown_row, survey
from fitune.data.tokenizer import tokenizer_of
from fitune.errors import DataError, visible
from fitune.plugin.contract import blame
from fitune.plugin.dataflow import DataContext
from fitune.plugin.recipe import Recipe
from fitune.plugin.registry import Registry


def show(recipe: Recipe, registry: Registry, *, row: int | None, rows: int, held_out: bool, as_json: bool) -> None:
    """Prepare a recipe's data and print what is in them. Raises `DataError` where there are none to show."""
    previews = Previews.of(recipe, registry, (row, rows, held_out))
    shown = None if previews is None else previews.read()
    if shown is None:
        shown, lasting = _loaded(recipe, row=row, rows=rows, held_out=held_out)
        if previews is not None and lasting:
            previews.keep(shown)
    notices = [*recipe.notices, *shown.notices]
    if as_json:
        examples = [one.as_json() for one in shown.rows]
        say_json({**shown.survey.as_json(), "notices": notices, "examples": examples}, plain=False)
        return
    console = TextConsole()
    for line in (*shown.survey.lines(), *(f"note: {notice}" for notice in notices)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for one in shown.rows:
        title = f"row {one.row} ({one.origin}): {one.tokens} tokens, {one.targets} trained on"
        console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
        console.print(picture(one.pieces), soft_wrap=True)


def _loaded(recipe: Recipe, *, row: int | None, rows: int, held_out: bool) -> tuple[Preview, bool]:
    """What is shown, by the tokenizer and the model; and whether the rows are kept for the next start."""
    with blame(f'model loader "{recipe.model.record.name}"'):
        tokenizer = tokenizer_of(recipe)
    context = context_of(recipe, tokenizer)
    watch = Progress(TextConsole(stderr=True))
    data = held_out_data(recipe, context, watch) if held_out else training_data(recipe, context, watch)
    if data is None:
        raise DataError(f'{recipe.path}: no held-out data. Add an [[eval.source]], or "fraction" to [eval]')
    notices = notices_of(recipe, context, *((None, data) if held_out else (data, None)))
    if row is not None and row > len(data.rows):
        raise DataError(f"there is no row {row}: there are {len(data.rows)}")
    numbers = range(min(rows, len(data.rows))) if row is None else [row - 1]
    shown = Preview(
        entry=data.rows.directory.name,
        sealed=str(data.rows.meta[META]),
        survey=survey(data, context.length),
        notices=notices,
        rows=tuple(shown_row(number, data.rows[number], tokenizer) for number in numbers),
    )
    return shown, data.lasting


def notices_of(
    recipe: Recipe, context: DataContext, data: Prepared | None, held_out: Prepared | None
) -> tuple[str, ...]:
    """What the model makes of these rows' lengths. Raises `DataError` if it cannot take them."""
    from fitune.compose.positions import built_or_none, position_notices

    model = built_or_none(recipe)
    return () if model is None else position_notices(recipe, context, model, data, held_out)


STYLES = {"trained": "bold green", "trained special": "bold magenta", "special": "magenta", "context": "dim"}


def picture(pieces: Iterable[tuple[str, str]]) -> Text:
    """A row in colours, and, since colours get lost in files, with its trained text between the signs ⟦ and ⟧."""
    text = Text()
    inside = False
    for kind, piece in pieces:
        trained = kind.startswith("trained")
        if trained != inside:
            text.append("⟦" if trained else "⟧", style="bold green")
            inside = trained
        if kind == "border":
            begin = "\n" if text else ""
            text.append(f"{begin}──────── {piece or 'next document'} ────────\n", style="yellow")
        else:
            text.append(visible(piece), style=STYLES[kind])  # rich would drop some
    if inside:
        text.append("⟧", style="bold green")
    return text
