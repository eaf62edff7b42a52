"""Passes whose recording is replayed."""

from vlprompt.methods import CoCoOp, CoOp, KgCoOp, MaPLe

MADE = {
    "coop": lambda clip: CoOp(clip, 4),
    "cocoop": lambda clip: CoCoOp(clip, 4),
    "maple": lambda clip: MaPLe(clip, n_ctx=2),
    "kgcoop": lambda clip: KgCoOp(CoOp(clip, 4)),
}
