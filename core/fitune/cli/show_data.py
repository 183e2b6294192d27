"""What `ft data` prints: what will be trained on, for a person or a program."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from fitune.cli.printing import say_json
from fitune.cli.progress import Progress
from fitune.cli.text_console import TextConsole
from fitune.data.prepare import Prepared, context_of, held_out_data, training_data
from fitune.data.survey import as_json_row, pieces, survey
from fitune.data.tokenizer import tokenizer_of
from fitune.errors import DataError, visible
from fitune.plugin.contract import blame
from fitune.plugin.dataflow import DataContext, Example
from fitune.plugin.recipe import Recipe


def show(recipe: Recipe, *, row: int | None, rows: int, held_out: bool, as_json: bool) -> None:
    """Prepare a recipe's data and print what is in them. Raises `DataError` where there are none to show."""
    with blame(f'model loader "{recipe.model.record.name}"'):
        tokenizer = tokenizer_of(recipe)
    context = context_of(recipe, tokenizer)
    watch = Progress(TextConsole(stderr=True))
    data = held_out_data(recipe, context, watch) if held_out else training_data(recipe, context, watch)
    if data is None:
        raise DataError(f'{recipe.path}: no held-out data. Add an [[eval.source]], or "fraction" to [eval]')
    notices = (*recipe.notices, *notices_of(recipe, context, *((None, data) if held_out else (data, None))))
    if row is not None and row > len(data.rows):
        raise DataError(f"there is no row {row}: there are {len(data.rows)}")
    numbers = range(min(rows, len(data.rows))) if row is None else [row - 1]
    counted = survey(data, context.length)
    if as_json:
        examples = [as_json_row(number, data.rows[number], tokenizer) for number in numbers]
        say_json({**counted.as_json(), "examples": examples}, plain=False)
        return
    console = TextConsole()
    for line in (*counted.lines(), *(f"note: {notice}" for notice in notices)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for number in numbers:
        example = data.rows[number]
        origin = str(example.origin)
        title = f"row {number + 1} ({origin}): {len(example.input_ids)} tokens, {example.targets} trained on"
        console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
        console.print(picture(example, tokenizer), soft_wrap=True)


def notices_of(
    recipe: Recipe, context: DataContext, data: Prepared | None, held_out: Prepared | None
) -> tuple[str, ...]:
    """What the model makes of these rows' lengths. Raises `DataError` if it cannot take them."""
    from fitune.compose.positions import built_or_none, position_notices

    model = built_or_none(recipe)
    return () if model is None else position_notices(recipe, context, model, data, held_out)


STYLES = {"trained": "bold green", "trained special": "bold magenta", "special": "magenta", "context": "dim"}


def picture(example: Example, tokenizer: Any) -> Text:
    """A row in colours, and, since colours get lost in files, with its trained text between the signs ⟦ and ⟧."""
    text = Text()
    inside = False
    for kind, piece in pieces(example, tokenizer):
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
