"""From what is asked to what runs: questions checked and encoded, and the run of each."""

from __future__ import annotations

from collections.abc import Sequence

from asyncthink.engine.prefix_cache import PrefixCache
from asyncthink.engine.prompting import Prompter
from asyncthink.engine.requests import Origin, Request, check_length, check_params, check_templates, continued
from asyncthink.engine.run import EpisodeRun
from asyncthink.engine.tools import Toolbox
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.options import AnswerForm, Guide, Mode, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.recorder import Listener
from asyncthink.model.contract import BranchDecoder
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question, turns


class RequestMaker:
    """Makes requests, and their runs, for one sampler.

    Args:
        options: the sampler's, which a request may replace.
        decoder: whose cache and positions have to hold a prompt, and whose joins an episode may use.
        prompter: fills and encodes the templates.
        codec: of the model's tokenizer.
        prefixes: heads of contexts in the decoder's cache.
        toolbox: what agents may call, or None.

    Raises:
        ValueError: options that the model or its templates do not support.
    """

    def __init__(
        self,
        options: Options,
        decoder: BranchDecoder,
        prompter: Prompter,
        codec: Codec,
        prefixes: PrefixCache,
        toolbox: Toolbox | None,
    ) -> None:
        self._options, self._decoder, self._prompter, self._codec = options, decoder, prompter, codec
        self._prefixes, self._toolbox = prefixes, toolbox
        self._check_options(options)

    def request(self, question: Question, params: SamplingParams | None, options: Options | None, name: str) -> Request:
        """:meth:`asyncthink.engine.sampler.ForkJoinSampler.request`."""
        params = params if params is not None else SamplingParams()
        options = options if options is not None else self._options
        check_params(params, "params")
        self._check_options(options)
        if self._toolbox and options.answer != self._options.answer:
            own = str(self._options.answer)
            raise ValueError(f"answer: expected {own!r} beside tools, got {str(options.answer)!r}")
        return Request(question, self.prompt(question, name, options), params, options)

    def continuation(
        self, prompt: str | Sequence[int], params: SamplingParams | None, origin: Origin | None
    ) -> Request:
        """:meth:`asyncthink.engine.sampler.ForkJoinSampler.continuation`."""
        params = params if params is not None else SamplingParams()
        check_params(params, "params")
        tokens = continued(self._codec, prompt)
        check_length(tokens, "prompt", self._decoder.cache, self._decoder.max_length)
        text = prompt if isinstance(prompt, str) else self._codec.decode(tokens)
        return Request(text, tokens, params, Options(Mode.SEQUENTIAL, answer=AnswerForm.TEXT), origin or Origin())

    def prompt(self, question: Question, name: str, options: Options | None = None) -> list[int]:
        """The tokens that open an episode. Raises ValueError if the cache or the model cannot hold them."""
        tokens = self._prompter.tokens(question, name, options if options is not None else self._options)
        check_length(tokens, name, self._decoder.cache, self._decoder.max_length)
        return tokens

    def run(self, request: Request, listener: Listener | None) -> EpisodeRun:
        """The episode of a request, which has not begun."""
        question = request.question
        core = EpisodeCore(
            turns(question)[-1][1],
            request.prompt,
            request.params,
            request.options,
            self._prompter.texts(request.options),
            max_length=self._decoder.max_length,
            listener=listener,
            tools=self._toolbox.texts if self._toolbox else None,
            rule=request.origin.rule,
            tail=request.origin.tail,
        )
        if not isinstance(question, str):
            core.episode.meta["messages"] = [dict(message) for message in question]
        first = request.origin.agent, request.origin.position
        shared = self._decoder.fork_bytes.shared
        return EpisodeRun(core, self._decoder.cache, self._prefixes, shared, self._toolbox, first)

    def _check_options(self, options: Options) -> None:
        if options.join not in self._decoder.join_modes:
            raise ValueError(
                f"join: this model offers {', '.join(self._decoder.join_modes)}, got {str(options.join)!r}: "
                f"{self._decoder.unavailable[options.join]}"
            )
        if self._toolbox and options.guide != Guide.OFF:
            raise ValueError(f"guide: expected 'off' beside tools (guides know only tags), got {str(options.guide)!r}")
        check_templates(self._prompter.format(options), options)
