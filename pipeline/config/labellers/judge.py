"""Settings of a judge: a language model behind an OpenAI-compatible server, its questions and its budget."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import LATER, OPERATIONAL, Closed, ServerAddress
from pipeline.safe_text import is_secret_parameter

HIGHEST_DIGIT = 9
_TAKEN_HEADERS = frozenset(
    ("host", "connection", "content-type", "content-length", "transfer-encoding", "accept", "accept-encoding",
     "user-agent", "cookie", "te", "upgrade", "trailer", "expect")
)  # fmt: skip


class Price(Closed):
    """The server's prices, in any currency; the budget and the manifests use the same one."""

    input: float = Field(0.0, ge=0, description="per million tokens of questions")
    output: float = Field(0.0, ge=0, description="per million tokens of answers")


class Budget(Closed):
    """Limits on a labeller over the whole run; beyond them its labels are missing."""

    calls: int | None = Field(None, ge=0, description="requests, including failed ones and retries")
    cost: float | None = Field(None, ge=0, description="money, at the prices in the section price")


class Endpoint(Closed):
    """An OpenAI-compatible server (``/v1/chat/completions``); a vLLM server is one."""

    base_url: ServerAddress = Field(description="such as http://127.0.0.1:8000/v1", json_schema_extra=OPERATIONAL)
    model: str = Field(min_length=1, description="name under which the server serves the model")
    version: str = Field("", description="change it when the name refers to another model: old labels are not reused")
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the key; default: no key is sent",
        json_schema_extra=OPERATIONAL,
    )
    key_header: str = Field(
        "Authorization",
        pattern=r"^[A-Za-z][A-Za-z0-9-]*$",
        description="header that carries the key: Authorization (as Bearer), or such as api-key (Azure) or x-api-key, "
        "with the key alone",
        json_schema_extra=OPERATIONAL,
    )
    query: dict[str, str] = Field(
        {},
        description="query of each request, such as {api-version: 2024-10-21} (Azure); no keys",
        json_schema_extra=OPERATIONAL,
    )
    concurrency: int = Field(16, ge=1, le=1024, description="concurrent requests", json_schema_extra=OPERATIONAL)
    requests_per_minute: float | None = Field(None, gt=0, json_schema_extra=OPERATIONAL)
    timeout: float = Field(120, gt=0, description="seconds for one whole answer", json_schema_extra=OPERATIONAL)
    attempts: int = Field(
        6, ge=1, description="times that a question is sent before its label is missing", json_schema_extra=OPERATIONAL
    )
    backoff: float = Field(
        1.0,
        ge=0,
        description="seconds: longest random wait, doubled after each attempt, unless the server sets the wait",
        json_schema_extra=OPERATIONAL,
    )
    max_wait: float = Field(60, ge=0, description="seconds between two attempts", json_schema_extra=OPERATIONAL)
    give_up_after: int = Field(
        32,
        ge=1,
        description="stop asking after this many questions in a row without an answer, each after all its attempts",
        json_schema_extra=OPERATIONAL,
    )
    price: Price = Field(Price(), json_schema_extra=OPERATIONAL)
    budget: Budget = Field(Budget(), json_schema_extra=OPERATIONAL)

    @field_validator("query", mode="before")
    @classmethod
    def _plain_query(cls, value: object) -> object:
        # YAML reads 2024-10-21 as a date, and 1 as a number.
        if not isinstance(value, dict):
            return value
        return {name: str(text) if isinstance(text, date | int | float) else text for name, text in value.items()}

    @field_validator("query")
    @classmethod
    def _holds_no_key(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if is_secret_parameter(name):
                raise ValueError(
                    f"{name}: a key would be written to the run's config; put it into the variable that api_key_env "
                    "names, and its header's name into key_header"
                )
        return value

    @field_validator("key_header")
    @classmethod
    def _free_header(cls, value: str) -> str:
        if value.lower() in _TAKEN_HEADERS:
            raise ValueError("this header has another use; name the one that the server reads the key from")
        return value

    @model_validator(mode="after")
    def _cost_needs_prices(self) -> "Endpoint":
        if self.budget.cost is not None and self.price.input + self.price.output == 0:
            raise ValueError("budget.cost: no price is set, so nothing would ever count; set price.input, price.output")
        return self


class JudgeScorer(Closed):
    """A language model as a labeller: it compares each pair of responses in both orders, or scores each response.

    pairwise, text: the last line `Verdict: A`, `B`, `tie` (1/2) or `none` (an abstention: the label is missing).
    pointwise, text: the last line `Score: x` with x on the scale, or `Score: none`.
    pairwise, graded: the last `[[A>>B]]`, `[[A>B]]`, `[[A=B]]`, `[[B>A]]` or `[[B>>A]]`: 1, 3/4, 1/2, 1/4 and 0.
    logprobs: the answer is one token; pairwise P(A) / (P(A) + P(B)), pointwise the mean of the scale's digits.
    An answer in any other form gives a missing label.
    """

    kind: Literal["judge"] = "judge"
    server: Endpoint
    mode: Literal["pairwise", "pointwise"] = "pairwise"
    verdict: Literal["text", "logprobs", "graded"] = "text"
    scale: tuple[int, int] = Field((1, 10), description="pointwise: lowest and highest score")
    template: str | None = Field(
        None,
        min_length=1,
        description="your own question: a jinja2 file over conversation, response_a and response_b, or response, "
        "answer, low, high, mark and verdict; default: prefloop's own",
    )
    rubric: bool = Field(
        False,
        description="score each criterion of a prompt's rubric (prompts.columns.rubric) by a question of its own; the "
        "label is their weighted mean; prompts without a rubric are judged as a whole",
        json_schema_extra=LATER,
    )
    temperature: float | None = Field(0.0, ge=0, le=2, description="null: not sent, for servers that refuse it")
    max_tokens: int = Field(1024, ge=1, description="longest answer in tokens; logprobs asks for 1")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", json_schema_extra=OPERATIONAL
    )
    top_logprobs: int = Field(20, ge=2, le=1000, description="logprobs: alternatives to request from the server")
    pairs_per_prompt: Annotated[int, Field(ge=1)] | None = Field(
        None, description="pairwise: compare this many of the K (K - 1) / 2 pairs; default: all"
    )
    image_tokens: int = Field(
        4096,
        ge=1,
        description="images: the most tokens that the server counts for one, for the budget",
        json_schema_extra=OPERATIONAL,
    )
    image_side: int = Field(
        1024,
        ge=16,
        description="images: longest side in pixels that is sent; larger ones are scaled down, and ones below "
        "image_least up",
        json_schema_extra=LATER,
    )
    image_least: int = Field(
        64,
        ge=1,
        description="images: shortest side in pixels that is sent; smaller ones are scaled up by whole numbers, "
        "pixel by pixel",
        json_schema_extra=LATER,
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "JudgeScorer":
        low, high = self.scale
        if low >= high:
            raise ValueError(f"scale: {low} to {high}; the first must be below the second")
        if self.image_least > self.image_side:
            raise ValueError(f"image_least: {self.image_least}, above image_side, {self.image_side}")
        if self.verdict == "graded" and self.mode == "pointwise":
            raise ValueError(
                "verdict: graded tells which of two is better; allowed with mode pointwise: text, logprobs"
            )
        if self.verdict == "graded" and self.rubric:
            raise ValueError("rubric: true, but verdict: graded grades whole responses; allowed: text, logprobs")
        if self.verdict == "logprobs" and self.mode == "pointwise" and not 0 <= low < high <= HIGHEST_DIGIT:
            raise ValueError(f"scale: {low} to {high}; verdict logprobs reads one digit: 0 to 9 at most")
        unread = {"scale"} if self.mode == "pairwise" else {"pairs_per_prompt"}
        unread |= {"max_tokens"} if self.verdict == "logprobs" else {"top_logprobs"}
        for name in sorted(unread):
            if self.__dict__[name] != type(self).model_fields[name].default:
                raise ValueError(f"{name}: mode {self.mode} with verdict {self.verdict} does not read it")
        return self
