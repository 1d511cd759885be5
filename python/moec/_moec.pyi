from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

__version__: str

class Generation(Iterator[str]):
    """Text as it is generated; see Model.generate."""

    def __iter__(self) -> Generation: ...
    def __next__(self) -> str: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def stop_reason(self) -> str | None: ...

class Model:
    """A loaded artifact with its cache. Calls may come from any thread; steps run one at a time."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_context(self) -> int: ...
    @property
    def max_slots(self) -> int: ...
    @property
    def device(self) -> str: ...
    def step(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int32],
        *,
        out: npt.NDArray[np.float32] | None = None,
    ) -> npt.NDArray[np.float32]: ...
    def step_argmax(
        self,
        tokens: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.int32]: ...
    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int = 0,
        slot: int = 0,
        add_bos: bool = True,
    ) -> Generation: ...
    def encode(self, text: str, *, add_bos: bool = True) -> list[int]: ...
    def decode(self, tokens: list[int], *, skip_special: bool = True) -> str: ...
    def length(self, slot: int = 0) -> int: ...
    def truncate(self, slot: int = 0, length: int = 0) -> None: ...

def _compile(
    model_dir: str,
    out: str,
    target: str,
    cpus: list[str],
    max_context: int,
    mla: str,
    formats: list[str],
    level: int,
    fold_norm: bool,
    max_tokens: int,
    max_memory: int,
    threads: int,
    progress: Callable[[int, int, str], None] | None,
) -> None: ...
def _load(artifact: str, threads: int, max_slots: int, cpu: str | None, weights: str) -> Model: ...
def _ir(model_dir: str, stage: str, max_context: int) -> str: ...
def _verify(
    model_dir: str,
    tokens: list[int],
    count: int,
    seed: int,
    layers: list[int],
    mla: str,
    formats: list[str],
    level: int,
    fold_norm: bool,
    artifact: bool,
) -> str: ...
def _calibrate(artifact: str, file: str, out: str, tokens: int, threads: int, sensitivity: bool) -> str: ...
