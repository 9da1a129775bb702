"""How commands end: code 0; a message and code 2 on bad input or where memory does not suffice; 130 on Ctrl-C."""

import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from i2v_jax.commands.wording import as_called
from i2v_jax.errors import InputError, flags_in_messages

OUT_OF_MEMORY = """\
The devices have too little memory for this. Any of these helps:
  --config.dtype=bfloat16 halves weights and activations
  a smaller height, width or number of frames
  sampling: --config.batch_per_device=1, --config.vae_slice=1; --config.mesh.frames=N spreads each video over N devices
  training: --config.remat=products, then full; --config.accumulate=N works through a batch in N parts;
    --config.frozen=fsdp with --config.mesh.fsdp=N leaves each device a share of the frozen weights"""


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a command and leaves the process: code 0, 130 when interrupted, 2 with a message on bad input or when a
    device is out of memory."""
    gc.freeze()  # modules stay to the end
    gc.set_threshold(100_000, 20, 20)  # tracing makes many objects, few of them garbage
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_once()
            try:
                with flags_in_messages():
                    main()
            finally:
                sys.stdout.flush()  # here, where it shows that nobody reads it any more
    except InputError as error:
        _fail(str(error), 2)
    except BrokenPipeError:  # what read the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if is_out_of_memory(error):
            _fail(f"{OUT_OF_MEMORY}\n({str(error).splitlines()[0]})", 2)
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}", 1)
    sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {as_called(message)}", file=sys.stderr, flush=True)
    if _is_one_of_several():
        from i2v_jax.devices import processes

        processes.leave(message, code)
    sys.exit(code)


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def is_out_of_memory(error: Exception) -> bool:
    jax = sys.modules.get("jax")  # commands that do not compute need not import it
    return jax is not None and isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def _show_once() -> Callable[..., None]:
    shown = set()

    def show(message: Warning, *where: Any) -> None:
        if str(message) not in shown:
            print(f"warning: {as_called(str(message))}", file=sys.stderr)
        shown.add(str(message))

    return show
