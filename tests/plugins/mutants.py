"""Backends that are wrong in one line each, and the test of the kit that must notice."""

from __future__ import annotations

# The example backend under another name, with something overridden in its model and its trainer.
MUTANT = """
{top}
from dataclasses import replace
import gptbridge_numpy.plugin as right
from gptbridge.hookspecs import hookimpl

gptbridge_check = right.gptbridge_check
gptbridge_setup_hardware = right.gptbridge_setup_hardware

@hookimpl
def gptbridge_backend_info():
    return replace(right.gptbridge_backend_info(), name="mutant", modules=("colorsys",))

def mutated(kind, spec):
    import numpy as np
    from gptbridge.reference import gradient_norm
    from gptbridge.session import TrainerState
    from gptbridge_numpy.session import NumpyDecoder

    class Mutant(kind):
{body}

    return Mutant(spec)

@hookimpl
def gptbridge_open_model(spec):
    from gptbridge_numpy.session import NumpyModel
    return mutated(NumpyModel, spec)

@hookimpl
def gptbridge_open_trainer(spec):
    from gptbridge_numpy.session import NumpyTrainer
    return mutated(NumpyTrainer, spec)
{end}
"""

DOUBLED = """
        def backward(self, inputs, labels, mask, factor, seed):
            return super().backward(inputs, labels, mask, 2 * factor, seed)
        """

# mistake: (test that must fail, its arguments, part of the message, source of what is overridden)
MUTANTS = {
    "gradients are doubled": (
        "test_gradients_match_the_reference",
        ("gelu_tanh-tied",),
        "Nearest known mistake: the loss is scaled by 2",
        DOUBLED,
    ),
    "gradients are doubled, seen by SGD": (
        "test_sgd_step_matches_the_reference",
        (),
        "grad_norm is off by 1 of",
        DOUBLED,
    ),
    "gradients are those of a step that was taken": (
        "test_gradients_match_the_reference",
        ("gelu_tanh-tied",),
        "weights after accumulate(): wte.weight differs",
        """
        def accumulate(self, batch):
            super().accumulate(batch)
            self.update(1e-3, 1)
        """,
    ),
    "a square matrix is transposed, both ways": (
        "test_logits_match_the_reference",
        ("gelu_tanh-tied",),
        "Nearest known mistake: attn.c_proj.weight is transposed",
        """
        def shards(self, kind="weight"):
            name = "h.0.attn.c_proj.weight"
            return [self._turned(s) if s.name == name else s for s in super().shards(kind)]
        def _turned(self, shard):
            return replace(shard, read=lambda: shard.read().T, write=lambda array: shard.write(array.T))
        """,
    ),
    "the shard of q holds k, both ways": (
        "test_logits_match_the_reference",
        ("gelu_tanh-tied",),
        "logits is off by",
        """
        def shards(self, kind="weight"):
            held = {s.name: s for s in super().shards(kind)}
            def other(name):
                return held[name.translate(str.maketrans("qk", "kq")) if ".attn." in name else name]
            return [replace(s, read=other(s.name).read, write=other(s.name).write) for s in held.values()]
        """,
    ),
    "the shard of q reads k": (
        "test_weights_survive_a_round_trip",
        ("gelu_tanh-tied",),
        "h.0.attn.q.weight differs",
        """
        def shards(self, kind="weight"):
            held = {s.name: s for s in super().shards(kind)}
            return [replace(s, read=held[s.name.replace("attn.q", "attn.k")].read) for s in held.values()]
        """,
    ),
    "shards are in another order": (
        "test_shards_follow_the_architecture",
        ("gelu_tanh-tied",),
        "shards('weight') are not the table's",
        """
        def shards(self, kind="weight"):
            return sorted(super().shards(kind), key=lambda shard: shard.name)
        """,
    ),
    "shards belong to nobody": (
        "test_shards_follow_the_architecture",
        ("gelu_tanh-tied",),
        "a shard of 'weight' belongs to nobody",
        """
        def shards(self, kind="weight"):
            return [replace(shard, owned=False) for shard in super().shards(kind)]
        """,
    ),
    "a shard is a view": (
        "test_a_shard_is_a_copy",
        (),
        "what was read is the weight's own memory",
        """
        def shards(self, kind="weight"):
            return [replace(s, read=lambda name=s.name: self._weights[name]) for s in super().shards(kind)]
        """,
    ),
    "what is written is kept as it is": (
        "test_a_shard_is_a_copy",
        (),
        "an array that was written is the weight's own memory",
        """
        def shards(self, kind="weight"):
            def kept(s):
                write = lambda array: self._weights.__setitem__(s.name, array)
                return replace(s, write=write, read=lambda: self._weights[s.name].copy())
            return [kept(s) for s in super().shards(kind)]
        """,
    ),
    "wrong shapes are made to fit": (
        "test_wrong_shapes_are_refused",
        ("weight",),
        "wte.weight accepts a cut array",
        """
        def shards(self, kind="weight"):
            def fitted(s):
                return lambda array: s.write(np.resize(array, s.shape))
            return [replace(s, write=fitted(s)) for s in super().shards(kind)]
        """,
    ),
    "micro-batch means are averaged": (
        "test_micro_batches_add_up",
        (4,),
        "is off by",
        """
        def _accumulate(self, batch):
            self._uneven = batch.loss_tokens / len(batch.inputs)
            return super()._accumulate(batch)
        def backward(self, inputs, labels, mask, factor, seed):
            weight = self._uneven / mask.sum()
            return weight * super().backward(inputs, labels, mask, weight * factor, seed)
        """,
    ),
    "AdamW forgets its bias correction": (
        "test_adamw_step_matches_the_reference",
        (),
        "Nearest known mistake: moments are not corrected for their bias",
        """
        def update(self, learning_rate, count):
            super().update(learning_rate, 10**9)
        """,
    ),
    "the norm is taken after clipping": (
        "test_clipping_has_a_threshold",
        (),
        "grad_norm is off by",
        """
        def clip(self):
            super().clip()
            return gradient_norm(self._gradients)
        """,
    ),
    "positions are ignored": (
        "test_logits_at_positions",
        (),
        "logits at has shape (4, 11, 37), not (4, 2, 37)",
        """
        def logits(self, tokens, at=None):
            return super().logits(tokens)
        """,
    ),
    "labels are shifted in evaluation": (
        "test_token_losses_match_the_reference",
        (),
        "Nearest known mistake: labels are shifted",
        """
        def token_losses(self, inputs, labels, at=None):
            return super().token_losses(inputs, np.roll(labels, 1, 1), at)
        """,
    ),
    "losses ignore their positions": (
        "test_token_losses_match_the_reference",
        (),
        "token losses at is off by",
        """
        def token_losses(self, inputs, labels, at=None):
            return super().token_losses(inputs[:, : labels.shape[1]], labels)
        """,
    ),
    "a model that is read has an optimizer": (
        "test_a_model_without_an_optimizer_reads_the_same",
        (),
        "a model that is read alone has shards('gradient')",
        """
        def shards(self, kind="weight"):
            return super().shards(kind) or super().shards()
        """,
    ),
    "a decoder forgets what it was fed": (
        "test_a_decoder_gives_the_logits_of_the_whole_text",
        ("gelu_tanh-tied",),
        "Nearest known mistake: only the last token is seen",
        """
        def decoder(self, rows, capacity):
            class Forgetful(NumpyDecoder):
                def feed(self, tokens, lengths):
                    self._texts = [text[:0] for text in self._texts]
                    return super().feed(tokens, lengths)
            return Forgetful(self, rows, capacity)
        """,
    ),
    "a decoder takes what fills up a row for tokens": (
        "test_a_decoder_gives_the_logits_of_the_whole_text",
        ("gelu_tanh-tied",),
        "logits of a decoder is off by",
        """
        def decoder(self, rows, capacity):
            class Padded(NumpyDecoder):
                def feed(self, tokens, lengths):
                    return super().feed(tokens, np.full_like(lengths, tokens.shape[1]))
            return Padded(self, rows, capacity)
        """,
    ),
    "a decoder loses count of many rows": (
        "test_a_decoder_has_any_number_of_rows",
        (8,),
        "Nearest known mistake: every row is the last one",
        """
        def decoder(self, rows, capacity):
            class Crowded(NumpyDecoder):
                def feed(self, tokens, lengths):
                    found = super().feed(tokens, lengths)
                    return found if len(found) < 8 else np.tile(found[-1:], (len(found), 1))
            return Crowded(self, rows, capacity)
        """,
    ),
    "a decoder feeds its first rows while others grow": (
        "test_rows_wait_while_others_grow",
        (),
        "logits of the rows that grow is off by",
        """
        def decoder(self, rows, capacity):
            class First(NumpyDecoder):
                def feed(self, tokens, lengths):
                    order = np.argsort(lengths == 0, kind="stable")
                    found = super().feed(tokens[order], lengths[order])
                    placed = np.empty_like(found)
                    placed[order] = found
                    return placed
            return First(self, rows, capacity)
        """,
    ),
    "a decoder mixes its rows": (
        "test_a_decoder_keeps_the_rows_that_are_named",
        (),
        "logits after keep is off by",
        """
        def decoder(self, rows, capacity):
            class Mixed(NumpyDecoder):
                def keep(self, rows):
                    super().keep(np.sort(rows))
            return Mixed(self, rows, capacity)
        """,
    ),
    "a decoder begins new rows with old tokens": (
        "test_a_decoder_keeps_the_rows_that_are_named",
        (),
        "logits after keep is off by",
        """
        def decoder(self, rows, capacity):
            class Stale(NumpyDecoder):
                def keep(self, rows):
                    super().keep(np.maximum(rows, 0))
            return Stale(self, rows, capacity)
        """,
    ),
    "a decoder ignores its capacity": (
        "test_a_decoder_has_a_capacity",
        (),
        "DID NOT RAISE",
        """
        def decoder(self, rows, capacity):
            return super().decoder(rows, 10**9)
        """,
    ),
    "moments are not loaded": (
        "test_moments_survive_a_round_trip",
        (),
        "exported moments: wte.weight.exp_avg differs",
        """
        def shards(self, kind="weight"):
            deaf = (lambda array: None) if kind.startswith("exp") else None
            return [replace(s, write=deaf or s.write) for s in super().shards(kind)]
        """,
    ),
    "the update count is lost on resume": (
        "test_resume_repeats_every_bit",
        (),
        "resumed steps give",
        """
        _within = False
        def step(self, batch, learning_rate):
            self._within = True
            result = super().step(batch, learning_rate)
            self._within = False
            return result
        @property
        def state(self):
            return self._kept
        @state.setter
        def state(self, state):
            self._kept = state if self._within else TrainerState()
        """,
    ),
    "a weight is frozen": (
        "test_weights_survive_a_round_trip",
        ("quick_gelu-tied",),
        "a step leaves ['ln_f.bias'] unchanged",
        """
        def update(self, learning_rate, count):
            before = self._weights["ln_f.bias"].copy()
            super().update(learning_rate, count)
            self._weights["ln_f.bias"][...] = before
        """,
    ),
    "an odd parallel layout is accepted": (
        "test_unsupported_fields_are_refused",
        ("parallel.tensor",),
        "DID NOT RAISE",
        "del gptbridge_check",
    ),
    "the wrong field is blamed": (
        "test_unsupported_fields_are_refused",
        ("parallel.sharding",),
        "not one on parallel.sharding",
        "from gptbridge.hookspecs import Problem\n@hookimpl\ndef gptbridge_check(spec):\n"
        "    return [Problem('training.device', 'not on a Sunday')] if spec.parallel.sharding > 1 else []",
    ),
    "weights change before a save has been asked for": (
        "test_a_save_reads_beside_the_gradients",
        (),
        "weight before the update: ",
        """
        def clip(self):
            norm = super().clip()
            super().update(0.5, self.state.updates + 1)
            return norm

        def update(self, learning_rate, count):
            pass
        """,
    ),
    "no save is asked for": (
        "test_a_save_reads_beside_the_gradients",
        (),
        "a step calls before_update 0 times",
        """
        def step(self, batch, learning_rate):
            self.before_update = bool
            return super().step(batch, learning_rate)
        """,
    ),
    "the plugin module imports its framework": (
        "test_plugin_module_imports_no_framework",
        (),
        "imports ['colorsys']",
        "TOP import colorsys",
    ),
}
