"""Questions about images for a judge: a text with the prompt, and the images themselves as data URLs. Torch-free.

Nothing is uploaded or linked: a server reads the images in the request (the content parts of OpenAI's chat
completions, which vLLM and others read, too).
"""

from pathlib import Path

from PIL import Image
from pydantic import JsonValue

from pipeline.config import JudgeScorer
from pipeline.data.pictures.picture import PictureError, data_url, decoded_picture, png_bytes
from pipeline.errors import RunError, UserError
from pipeline.types import Message, Prompt, Response
from reward_models.answers.questions import Question
from reward_models.images.pixels import Album, prompt_text
from reward_models.judge.prompt import JudgeTemplate, fenced, unused_mark

_OWN_TEMPLATES = {mode: Path(__file__).with_name(f"{mode}.jinja") for mode in ("pairwise", "pointwise")}


class ImagePrompt:
    """Put a question about one image, or two, to a chat server.

    Attributes:
        source: the template's text, which is part of the labels' version.
    """

    def __init__(self, settings: JudgeScorer, album: Album, field: str) -> None:
        """Read and try the template. Raises ``UserError`` that names file and line if it cannot be used."""
        if settings.verdict == "graded":
            raise UserError(f"{field}.verdict: graded grades texts; allowed of images: text or logprobs")
        self._settings = settings
        self._album = album
        file = Path(settings.template) if settings.template is not None else _OWN_TEMPLATES[settings.mode]
        self._template = JudgeTemplate(file, field)
        self.source = self._template.source
        word = "prompt-3141"
        if word not in self.render(Question(Prompt((Message("user", word),)), (Response("", (), (), "stop"),))):
            raise UserError(f"{self._template.field}: does not show {{{{ prompt }}}}, which the images were made for")

    def render(self, question: Question) -> str:
        """Return the question's text. Raises ``UserError`` if the template fails."""
        prompt, answer = prompt_text(question.prompt), question.prompt.answer
        mark = unused_mark(question.prompt.shown, [answer or ""])
        return self._template.render(
            {
                "mark": mark,
                "prompt": fenced("PROMPT", prompt, mark),
                "answer": None if answer is None else fenced("EXPECTED", answer, mark),
                "verdict": self._settings.verdict,
                "low": self._settings.scale[0],
                "high": self._settings.scale[1],
            }
        )

    def content(self, question: Question, text: str) -> JsonValue:
        """Return the text, then each image after its name. Raises ``RunError`` for a damaged image."""
        parts: list[JsonValue] = [{"type": "text", "text": text}]
        for number, response in enumerate(question.responses):
            if len(question.responses) > 1:
                parts.append({"type": "text", "text": f"Image {'AB'[number]}:"})
            parts.append({"type": "image_url", "image_url": {"url": self._url(response)}})
        return parts

    def more_tokens(self, question: Question) -> int:
        """Return the most tokens that the server counts for the images and their names."""
        return len(question.responses) * (self._settings.image_tokens + 16)

    def _url(self, response: Response) -> str:
        try:
            image = decoded_picture(self._album.file(response))
        except PictureError as error:
            raise RunError(f"the image {response.text[:16]} cannot be read: {error}") from None
        sent = png_bytes(sized(image, self._settings.image_least, self._settings.image_side))
        return data_url(sent)


def sized(image: Image.Image, least: int, most: int) -> Image.Image:
    """Scale a small image up by a whole number until its shorter side has ``least`` pixels, a large one down to
    ``most`` on its longer side."""
    short, long = sorted(image.size)
    times = min(-(-least // short), most // long)
    if times > 1:
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    if long > most:
        shape = (max(1, image.width * most // long), max(1, image.height * most // long))
        return image.resize(shape, Image.Resampling.BICUBIC)
    return image
