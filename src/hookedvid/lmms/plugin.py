"""The model class that lmms-eval calls; the questions' texts, the extraction and the scores are lmms-eval's.

A video that fails ends the run: lmms-eval has no row for it, and any text in its place could be scored as right.
"""

import os
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Int
from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from PIL import ImageFile
from torch import Tensor
from tqdm import tqdm

from hookedvid.errors import HookedVidError, InputError
from hookedvid.lmms import arguments
from hookedvid.lmms.arguments import Value
from hookedvid.model.answers import answer_log_probs, real_tokens
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.nn.attention import Kernel
from hookedvid.values.inputs import VideoInputs


class HookedVid(lmms):
    """A Video-LLM under interventions, as lmms-eval's `--model hookedvid`.

    The prompt is the task's text in the model's chat template, after the video.

    Args:
        pretrained, dtype, kernel, overrides (as JSON): As in `HookedVideoLLM.from_pretrained`.
        n_frames, sampler: As in `prepare`; the model's own unless given.
        knockout: `LV-K @ 4:8`, several separated by `;`.
        early_exit: The number of blocks that see the video.
        device: Unless given, the GPU of this process's LOCAL_RANK, or the CPU.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: Value = "tiny",
        device: str | None = None,
        dtype: str | None = None,
        kernel: Kernel = "sdpa",
        overrides: str = "",
        n_frames: Value | None = None,
        sampler: str | None = None,
        knockout: Value = "",
        early_exit: Value | None = None,
        batch_size: Value = 1,
    ):
        super().__init__()
        if str(batch_size) != "1":
            raise InputError(f"batch_size is {batch_size}; questions are asked one by one, give 1")
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # lmms-eval sets it, and frames cut short would be read as grey
        self.interventions = arguments.interventions(knockout, early_exit)
        if device is None:
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        # The base class deletes it after the last answer, as it does every module.
        self.model = HookedVideoLLM.from_pretrained(
            str(pretrained), device=device, dtype=dtype, kernel=kernel, overrides=arguments.overrides(overrides)
        )
        self.device = torch.device(device)
        self._sampling = {"n_frames": arguments.whole("n_frames", n_frames), "sampler": sampler}

    def generate_until(self, requests: list) -> list[str]:
        """One greedy answer for each request (question, generation_kwargs, doc_to_visual, doc_id, task, split)."""
        rules = [arguments.generation(r.args[1]) for r in requests]  # all before the first answer
        answers = []
        for request, rule in zip(tqdm(requests, desc="hookedvid", disable=self.rank != 0), rules, strict=True):
            question, _, *where = request.args
            text = self.model.generate(
                self._inputs(question, *where), self.interventions, max_new_tokens=rule.max_new_tokens,
                stop_strings=rule.until, return_type="text",
            )  # fmt: skip
            answers.append(arguments.cut(text, rule.until))
        return answers

    def loglikelihood(self, requests: list) -> list:
        """(loss, is it greedy) of each request (question, answer, doc_to_visual, doc_id, task, split).

        Greedy is an answer that `generate_until` would give, its end included. The loss is the mean negative
        log-likelihood of the answer's tokens and its end, as in a study of likelihoods: lmms-eval's tasks choose the
        option with the smallest value, and its wrappers return this, not the log-likelihood. The pairs come in
        lmms-eval's container of answers: 0.7.3 makes a text of a bare pair, which no task can read.
        """
        losses = []
        progress = tqdm(total=len(requests), desc="hookedvid", disable=self.rank != 0)
        # The options of a question come one after another, and share its video.
        for (question, *_), group in groupby(requests, key=lambda r: (r.args[0], *r.args[3:])):
            inputs = None
            for request in group:
                _, answer, *where = request.args
                inputs = inputs or self._inputs(question, *where)
                text = answer if isinstance(answer, str) else answer(self._doc(*where[1:]))
                losses.append(GenerationResult(self._loss(inputs, self._answer_tokens(question, text))))
                progress.update()
        progress.close()
        return losses

    def generate_until_multi_round(self, requests: list) -> list[str]:
        """Not offered: an intervention is defined on one prompt with one video."""
        raise InputError("hookedvid asks one question on one video; tasks of several rounds are not supported")

    def _doc(self, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _inputs(self, question: str, doc_to_visual: Any, doc_id: int, task: str, split: str) -> VideoInputs:
        visuals = doc_to_visual(self._doc(doc_id, task, split))
        try:
            if not isinstance(visuals, list) or len(visuals) != 1 or not isinstance(visuals[0], str):
                kinds = [type(v).__name__ for v in visuals] if isinstance(visuals, list) else visuals
                raise InputError(f"hookedvid asks about one video, given by its path; this task shows {kinds}")
            if "<image>" in question:
                raise InputError("the question places <image> itself; hookedvid puts the video before the question")
            return self.model.prepare(visuals[0], question, **self._sampling)
        except HookedVidError as e:
            e.add_note(f"This is document {doc_id} of {task}; the run ends here, so that it cannot be scored.")
            raise

    def _answer_tokens(self, question: str, answer: str) -> Int[Tensor, "1 new"]:
        """Ids of an answer to the question and of its end, as `prepare` puts them behind a prompt."""
        inputs = self.model.prepare(None, question, answer=answer)
        return inputs.tokens[:, inputs.layout.n_prompt :]

    @torch.no_grad()
    def _loss(self, inputs: VideoInputs, tokens: Int[Tensor, "1 new"]) -> tuple[float, bool]:
        inputs, n_tokens = inputs.extend(tokens), self.model.cfg.n_tokens
        logits = self.model(inputs, interventions=self.interventions, logits_to_keep=tokens.shape[1] + 1)
        log_probs = answer_log_probs(logits[0], inputs, n_tokens)
        likeliest = real_tokens(logits[0, :-1], n_tokens).argmax(-1)
        return -log_probs.mean().item(), bool((likeliest == tokens[0]).all())
