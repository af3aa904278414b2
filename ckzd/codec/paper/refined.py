"""Frequencies of tables, refined by an LSTM that was trained at the encoder."""

from ckzd.codec.entropy.models import Model, product
from ckzd.codec.entropy.range_coder import Rows
from ckzd.codec.paper.lstm import LstmModel


class RefinedModel:
    """The tables' frequencies, multiplied by what the LSTM makes of the whole context."""

    def __init__(self, tables: Model, lstm: LstmModel) -> None:
        self._tables, self._lstm = tables, lstm
        self._rows: dict[tuple[int, int, int], Rows] = {}

    def rows(self, kind: int, number: int, density: int) -> Rows:
        """Frequencies (GRID, A)."""
        key = (kind, number, density)
        if key not in self._rows:
            self._rows[key] = product(self._tables.rows(*key), self._lstm.rows(*key))
        return self._rows[key]
