"""What of a TFLite network stays float32 in int8, and whose ranges are cut off."""

import numpy as np
import pytest

from models.formats.tflite_precision import Network, Operation, saturating, tflite_float_tensors, tflite_head


def network(*operations, **ranks):
    """A chain of operations as a network; tensors have four axes where nothing else is said."""
    operations = [Operation(kind, tuple(ins), tuple(outs)) for kind, ins, outs in operations]
    names = {name for operation in operations for name in operation.inputs + operation.outputs}
    return Network(operations, ("image",), ("boxes",), dict.fromkeys(names, 4) | ranks)


def test_attention_stays_float_but_not_its_linear_layers_nor_the_maps_around_it():
    found = tflite_float_tensors(
        network(
            ("CONV_2D", ["image"], ["a"]),
            ("LOGISTIC", ["a"], ["b"]),
            ("CONV_2D", ["b"], ["c"]),
            ("TRANSPOSE", ["c"], ["planes"]),
            ("RESHAPE", ["planes"], ["tokens"]),
            ("MEAN", ["tokens"], ["norm"]),
            ("FULLY_CONNECTED", ["norm"], ["query"]),
            ("MUL", ["query", "tokens"], ["sum"]),
            ("RESHAPE", ["sum"], ["heads"]),
            ("SOFTMAX", ["heads"], ["weights"]),
            ("RESHAPE", ["weights"], ["back"]),
            ("CONV_2D", ["back"], ["d"]),
            ("ADD", ["d", "b"], ["e"]),
            ("CONV_2D", ["e"], ["logits"]),
            ("RESHAPE", ["logits"], ["boxes"]),
            tokens=3,
            norm=3,
            query=3,
            sum=3,
            boxes=3,
        )
    )
    attention = {"planes", "tokens", "norm", "sum", "heads", "weights", "back"}
    assert set(found) == attention | {"logits", "boxes"}


def test_the_head_begins_with_its_convolutions():
    operations = [
        ("CONV_2D", ["image"], ["a"]),
        ("CONV_2D", ["a"], ["left"]),
        ("CONV_2D", ["a"], ["right"]),
        ("CONCATENATION", ["left", "right"], ["boxes"]),
    ]
    assert {operation.outputs for operation in tflite_head(network(*operations))} == {
        ("left",),
        ("right",),
        ("boxes",),
    }


@pytest.mark.parametrize(
    ("others", "bounds"),
    [
        ([("MUL", ["a", "gate"], ["boxes"])], {"a": (-6, np.inf)}),
        ([("MUL", ["a", "gate"], ["b"]), ("ADD", ["a", "b"], ["boxes"])], {}),  # low values count elsewhere
        ([("MUL", ["image", "gate"], ["boxes"])], {}),  # a gate, not SiLU
    ],
)
def test_only_what_silu_alone_reads_is_cut_off(others, bounds):
    operations = [("CONV_2D", ["image"], ["a"]), ("LOGISTIC", ["a"], ["gate"]), *others]
    assert saturating(network(*operations)) == bounds


def test_hard_swish_cuts_off_too():
    assert saturating(network(("HARD_SWISH", ["image"], ["boxes"]))) == {"image": (-3, np.inf)}
