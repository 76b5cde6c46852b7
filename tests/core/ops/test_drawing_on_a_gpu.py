"""Drawing on a GPU: a captured step, an eager one, a batch and pictures beside texts give the same codes."""

import pytest
import torch
from tests.core.drawing_heads import SmallHead
from tests.core.small_decoder import small_decoder

from vila_core.engine.answer import Generated
from vila_core.engine.drawing import DrawingRequest, Drawn, OutputModes
from vila_core.engine.drawing_settings import DrawingConfig
from vila_core.engine.engine import Engine
from vila_core.engine.inputs import TextPrompt
from vila_core.engine.limits import EngineConfig
from vila_core.engine.request import Handle
from vila_core.engine.sampling import GenerationConfig
from vila_core.generation.drawing_rows import DrawingRows, DrawingSampling
from vila_core.language.decoder import Decoder
from vila_core.language.paged_rows import StepKind
from vila_core.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GPU = torch.device("cuda")
START = 7
HOT = DrawingConfig(guidance=3, temperature=1.1, top_k=12, top_p=0.9, seed=5)


@pytest.fixture(scope="module")
def on_gpu() -> Decoder:
    return small_decoder(max_length=512)


@pytest.fixture(scope="module")
def head() -> SmallHead:
    return SmallHead(256, depth=3).to(GPU, torch.bfloat16)


def new_engine(decoder: Decoder, tokenizer: Tokenizer, head: SmallHead) -> Engine:
    modes = OutputModes(head, {START: "image"}, lambda kind, text: [30, 31, START])
    return Engine(decoder, tokenizer, frozenset(), EngineConfig(cache_bytes=64 << 20, max_batch=24), modes=modes)


def draw(engine: Engine, decoder: Decoder, number: int) -> Handle:
    prompt = TextPrompt(decoder, [*range(40, 50 + 7 * number), START])
    return engine.submit(prompt, GenerationConfig(seed=1), DrawingRequest(HOT, number))


def codes_of(answer: Generated) -> object:
    (drawn,) = answer.parts
    assert isinstance(drawn, Drawn)
    return drawn.codes


def test_captured_and_eager_draws_agree() -> None:
    """The same hidden states, in fp32: one graph, one call after another, and codes chosen as tokens are."""
    head = SmallHead(64, depth=3).to(GPU)
    from vila_core.language.capturing import capture
    from vila_core.ops.codes import choose_codes
    from vila_core.ops.sampling import choose_tokens

    hidden = torch.randn(8, 64, device=GPU, generator=torch.Generator(GPU).manual_seed(0))
    results: list[torch.Tensor] = []
    for is_captured, choice in ((False, None), (False, choose_codes), (True, choose_codes)):
        rows = DrawingRows(head, 8, 64, GPU, torch.float32, choose_tokens, choice)
        sampling = DrawingSampling(3.0, 1.0, 12, 0.9, seed=3)
        for row in range(0, 8, 2):
            rows.start(row, sampling, 0, row + 1)
        kind = StepKind.of([sampling.of_row])
        if is_captured:
            with rows.unused():
                graph, codes = capture(lambda r=rows, k=kind: r.draw(hidden, k), GPU)
            steps: list[torch.Tensor] = []
            for _ in range(4):
                graph.replay()
                steps.append(codes.clone())
        else:
            steps = [rows.draw(hidden, kind).clone() for _ in range(4)]
        results.append(torch.stack(steps)[:, ::2])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])
    assert (results[0] >= 0).all()


@pytest.mark.parametrize("rows", [1, 2, 16, 40])
def test_fused_steps_of_the_depth_transformer_follow_its_modules(rows: int) -> None:
    from vila_core.config import DepthTransformerConfig
    from vila_core.generation.depth_transformer import DepthTransformer, ModuleDepthSteps, depth_steps
    from vila_core.generation.fused_depth import FusedDepthSteps

    config = DepthTransformerConfig(
        hidden_size=512, embed_dim=320, num_hidden_layers=2, num_attention_heads=5, code_width=256, codebook_size=1000,
        code_depth=4, grid=(4, 4),
    )  # fmt: skip
    torch.manual_seed(0)
    half = DepthTransformer(config).eval().requires_grad_(False).to(GPU, torch.bfloat16)
    exact = DepthTransformer(config).eval().requires_grad_(False).to(GPU, torch.float64)
    exact.load_state_dict(half.state_dict())
    hidden = torch.randn(rows, 512, device=GPU, dtype=torch.bfloat16)
    sums = torch.randn(3, rows, 256, device=GPU, dtype=torch.bfloat16)
    steps, expected = depth_steps(half, hidden), ModuleDepthSteps(exact, hidden.double())
    assert isinstance(steps, FusedDepthSteps)
    for depth in range(4):
        x = steps.read_codes(sums[depth - 1]) if depth else steps.read_hidden(hidden)
        y = expected.read_codes(sums[depth - 1].double()) if depth else expected.read_hidden(hidden.double())
        found, true = steps.logits(x, depth).double(), expected.logits(y, depth)
        assert ((found - true).norm() / true.norm()).item() < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [2, 3, 8])
def test_products_of_few_tokens(tokens: int, dtype: torch.dtype) -> None:
    """VILA-U 7B's shapes, ragged ones, and side by side; a token's result does not depend on the others."""
    from vila_core.ops.linear import gelu_linear, linear, swiglu_linear

    generator = torch.Generator(GPU).manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=GPU, generator=generator).to(dtype)

    def error(y: torch.Tensor, expected: torch.Tensor) -> float:
        return ((y.double() - expected).norm() / expected.norm()).item()

    tolerance = 1e-3 if dtype == torch.float16 else 8e-3
    for sizes, inputs in (
        ((4096, 4096, 4096), 4096), ((4096,), 11008), ((7680,), 2560), ((2560,), 10240), ((16384,), 2560),
        ((2560,), 1024), ((3000,), 3592), ((17, 5, 30), 264), ((9,), 8),
    ):  # fmt: skip
        x, weights = randn(tokens, inputs), [randn(size, inputs) for size in sizes]
        biases = [randn(size) for size in sizes]
        expected = torch.cat([x.double() @ weight.double().T for weight in weights], dim=1)
        y = linear(x, weights, [None] * len(sizes))
        assert error(y, expected) < tolerance, (sizes, inputs)
        assert torch.equal(y[-1], linear(torch.stack((x[-1], x[-1])), weights, [None] * len(sizes))[0]), sizes
        assert error(linear(x, weights, biases), expected + torch.cat(biases).double()) < tolerance, (sizes, inputs)
        assert error(
            gelu_linear(x, weights[0], biases[0]),
            torch.nn.functional.gelu(x.double() @ weights[0].double().T + biases[0].double()),
        ) < tolerance, (sizes, inputs)  # fmt: skip
    x, gate, up = randn(tokens, 4096) / 64, randn(11008, 4096), randn(11008, 4096)
    expected = torch.nn.functional.silu(x.double() @ gate.double().T) * (x.double() @ up.double().T)
    assert error(swiglu_linear(x, gate, up), expected) < 2 * tolerance


def test_a_picture_twice(on_gpu: Decoder, head: SmallHead, tokenizer: Tokenizer) -> None:
    engine = new_engine(on_gpu, tokenizer, head)
    first = codes_of(draw(engine, on_gpu, 0).result())
    assert codes_of(draw(engine, on_gpu, 0).result()) == first


def test_pictures_beside_texts_end_and_leave_nothing(on_gpu: Decoder, head: SmallHead, tokenizer: Tokenizer) -> None:
    engine = new_engine(on_gpu, tokenizer, head)
    text = TextPrompt(on_gpu, list(range(60, 80)))
    texts = [engine.submit(text, GenerationConfig(max_new_tokens=length)) for length in (30, 3)]
    pictures = [draw(engine, on_gpu, number) for number in range(3)]
    engine.step()
    pictures.append(draw(engine, on_gpu, 3))
    assert [len(list(codes_of(one.result()))) for one in pictures] == [6] * 4  # pyright: ignore[reportArgumentType]
    assert [len(one.result().token_ids) for one in texts] == [30, 3]
    stats = engine.stats()
    assert (stats.answering, stats.pages_used) == (0, 0)


def test_a_model_begins_a_picture_while_the_next_step_runs(
    on_gpu: Decoder, head: SmallHead, tokenizer: Tokenizer
) -> None:
    engine = new_engine(on_gpu, tokenizer, head)
    config = GenerationConfig(max_new_tokens=4, logit_bias={START: 100})
    answer = engine.submit(TextPrompt(on_gpu, list(range(60, 80))), config).result()
    assert answer.token_ids == [START] * 4
    assert sum(isinstance(part, Drawn) for part in answer.parts) == 3
