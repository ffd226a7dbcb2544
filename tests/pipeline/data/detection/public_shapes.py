"""Rows in the shapes of public preference data sets, invented; and what the first row is."""

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def talk(*texts: str) -> list[Row]:
    return [(user, said)[place % 2](text) for place, text in enumerate(texts)]


@dataclass(frozen=True)
class Shape:
    """A data set's rows, the one setting that it needs, and what its first row is.

    A pair is (prompt's last turn, chosen, rejected, soft label); a group maps responses to rewards; a mark is
    (prompt's last turn, completion, good).
    """

    rows: list[Row]
    first: tuple[str, str, str, float] | dict[str, float | None] | tuple[str, str, bool]
    setting: Row = field(default_factory=dict)


HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why is the sky blue?\n\nAssistant:"
ASKED = "Why is the sky blue?"
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
PAIR = (ASKED, "Light scatters.", "It is paint.", 1.0)
WRONG, RIGHT = "It is paint.", "Light scatters."
SHARED = [user(ASKED)]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}, {"from": "human", "value": ASKED}]


def numbered(one: str, other: str, **more: Any) -> Row:
    """A row whose two responses have these columns: the first is wrong."""
    return {one: WRONG, other: RIGHT, **more}


SHAPES: dict[str, Shape] = {
    "trl standard": Shape([{"prompt": ASKED, "chosen": RIGHT, "rejected": WRONG}] * 3, PAIR),
    "trl implicit prompt": Shape(
        [{"chosen": f"{ASKED} Light scatters.", "rejected": f"{ASKED} It is paint."}] * 3,
        (ASKED, " Light scatters.", " It is paint.", 1.0),
    ),
    "trl conversational": Shape(
        [{"prompt": SHARED, "chosen": [said(RIGHT)], "rejected": [said(WRONG)], "tools": TOOLS}] * 3, PAIR
    ),
    "trl conversational, implicit": Shape(
        [{"chosen": [*SHARED, said(RIGHT)], "rejected": [*SHARED, said(WRONG)]}] * 3, PAIR
    ),
    "hh": Shape([{"chosen": f"{HH} Light scatters.", "rejected": f"{HH} It is paint."}] * 3, PAIR),
    "ultrafeedback, binarised": Shape(
        [
            {"prompt": ASKED, "prompt_id": "a1", "messages": [*SHARED, said(RIGHT)], "score_chosen": 8.5}
            | {"chosen": [*SHARED, said(RIGHT)], "rejected": [*SHARED, said(WRONG)], "score_rejected": 4.0}
        ]
        * 3,
        PAIR,
    ),
    "ultrafeedback, K completions": Shape(
        [
            {"source": "s", "instruction": ASKED, "models": ["m", "n", "o"], "correct_answers": ["None"]}
            | {
                "completions": [
                    {"response": RIGHT, "overall_score": 8.5, "fine-grained_score": 4.75, "model": "m"},
                    {"response": WRONG, "overall_score": 3, "fine-grained_score": 2, "model": "n"},
                    {"response": "Why?", "overall_score": "N/A", "fine-grained_score": 1, "model": "o"},
                ]
            }
        ]
        * 3,
        {RIGHT: 8.5, WRONG: 3.0, "Why?": None},
        {"columns": {"rewards": "completions.overall_score"}},
    ),
    "nectar": Shape(
        [
            {
                "prompt": "\n\nHuman: Why is the sky blue?\n\nAssistant: ",
                "turns": 1,
                "num_responses": 3,
                "source": ["s"],
            }
            | {
                "answers": [
                    {"answer": RIGHT, "model": "m", "rank": 1.0},
                    {"answer": "Why?", "model": "n", "rank": 2.0},
                    {"answer": WRONG, "model": "o", "rank": 3.0},
                ]
            }
        ]
        * 3,
        {RIGHT: -1.0, "Why?": -2.0, WRONG: -3.0},
    ),
    "helpsteer 1": Shape(
        [
            {"prompt": prompt, "response": response, "helpfulness": score, "correctness": score, "coherence": 4}
            | {"complexity": 1, "verbosity": 2}
            for prompt in (ASKED, "Why is grass green?")
            for response, score in ((RIGHT, 4), (WRONG, 1), ("Why?", 0), ("No.", 0))
        ],
        {RIGHT: 4.0, WRONG: 1.0, "Why?": 0.0, "No.": 0.0},
        {"columns": {"rewards": "helpfulness"}},
    ),
    "helpsteer 2": Shape(
        [
            {"prompt": prompt, "response": response, "helpfulness": score, "correctness": score, "coherence": 4}
            for prompt in (ASKED, "Why is grass green?", "Why?")
            for response, score in ((RIGHT, 4), (WRONG, 1))
        ],
        {RIGHT: 4.0, WRONG: 1.0},
        {"columns": {"rewards": "helpfulness"}},
    ),
    "helpsteer 2, preferences": Shape(
        [
            {"split": "train", "prompt": ASKED, "preference_strength": strength, "preference_statement": "..."}
            | numbered("response_1", "response_2")
            for strength in (3, -2, 0)
        ],
        PAIR,
    ),
    "helpsteer 3": Shape(
        [
            {"domain": "general", "language": "english", "context": talk("Hi", "Hello.", ASKED)}
            | numbered("response1", "response2", overall_preference=strength)
            | {"individual_preference": [{"score": strength, "reasoning": "...", "feedback1": "...", "feedback2": "."}]}
            for strength in (3, -1, 0)
        ],
        PAIR,
        {"columns": {"rewards": "overall_preference"}},
    ),
    "helpsteer 3, several annotators": Shape(
        [
            {"context": SHARED, **numbered("response1", "response2", overall_preference=2)}
            | {"individual_preference": [{"score": score, "reasoning": "..."} for score in scores]}
            for scores in ((3, 0), (2, 2), (-1, 1))
        ],
        (ASKED, RIGHT, WRONG, 0.75),
        {"columns": {"rewards": "individual_preference.score"}},
    ),
    "pku-saferlhf": Shape(
        [
            {"prompt": ASKED, **numbered("response_0", "response_1"), "is_response_0_safe": True}
            | {"is_response_1_safe": True, "better_response_id": better, "safer_response_id": 0}
            for better in (1, 0, 1)
        ],
        PAIR,
        {"columns": {"votes": "better_response_id"}},
    ),
    "shp": Shape(
        [
            {"post_id": "x", "domain": "askscience_train", "upvote_ratio": 0.9, "history": ASKED, "score_ratio": 2.5}
            | {"c_root_id_A": "a", "c_root_id_B": "b", **numbered("human_ref_A", "human_ref_B", labels=label)}
            | {"score_A": 9 if label else 2, "score_B": 2 if label else 9, "seconds_difference": 3.0}
            for label in (0, 1, 1)
        ],
        PAIR,
    ),
    "stack-exchange, scores": Shape(
        [
            {"qid": 5, "question": ASKED, "date": "2011/1/1", "metadata": ["https://a", "https://b"]}
            | {
                "answers": [
                    {"answer_id": 7, "author": "a", "author_id": 1, "pm_score": 4, "selected": True, "text": RIGHT},
                    {"answer_id": 8, "author": "b", "author_id": 2, "pm_score": -1, "selected": False, "text": WRONG},
                ]
            }
        ]
        * 3,
        {RIGHT: 4.0, WRONG: -1.0},
    ),
    "stack-exchange, paired": Shape(
        [{"qid": 5, "question": ASKED, "date": "d", "response_j": RIGHT, "response_k": WRONG}] * 3, PAIR
    ),
    "summaries from feedback": Shape(
        [
            {
                "info": {"id": "t3", "post": ASKED, "title": "T", "subreddit": "r"},
                "worker": "w",
                "batch": "b",
                "split": "s",
            }
            | {"summaries": [{"text": WRONG, "policy": "p"}, {"text": RIGHT, "policy": "q"}], "choice": choice}
            for choice in (1, 0, 1)
        ],
        PAIR,
    ),
    "webgpt": Shape(
        [
            {"question": {"dataset": "eli5", "id": "1", "full_text": ASKED}, **numbered("answer_0", "answer_1")}
            | {"quotes_0": {"title": ["t"], "extract": ["e"]}, "score_0": -score, "score_1": score, "tokens_0": "x"}
            for score in (0.5, -1.0, 0.0)
        ],
        {WRONG: -0.5, RIGHT: 0.5},
    ),
    "arena battles": Shape(
        [
            {
                "question_id": "q",
                "model_a": "m",
                "model_b": "n",
                "winner": winner,
                "judge": "j",
                "turn": 1,
                "language": "en",
            }
            | {"conversation_a": [*SHARED, said(WRONG)], "conversation_b": [*SHARED, said(RIGHT)], "anony": True}
            for winner in ("model_b", "model_a", "tie", "tie (bothbad)")
        ],
        PAIR,
    ),
    "arena, winner by name": Shape(
        [
            {"prompt": ASKED, "model_a": "Alpha", "model_b": "beta-2", **numbered("response_a", "response_b")}
            | {"winner": winner}
            for winner in ("beta-2", "alpha", "tie", "both bad")
        ],
        PAIR,
    ),
    "arena, a column for each winner": Shape(
        [
            {"id": 1, "model_a": "m", "model_b": "n", "prompt": f'["{ASKED}"]', "response_a": f'["{WRONG}"]'}
            | {"response_b": f'["{RIGHT}"]', "winner_model_a": a, "winner_model_b": b, "winner_tie": int(not a + b)}
            for a, b in ((0, 1), (1, 0), (0, 0))
        ],
        PAIR,
    ),
    "openai": Shape(
        [
            {"input": {"messages": talk("Hi", "Hello.", ASKED), "tools": [], "parallel_tool_calls": True}}
            | {"preferred_output": [said(RIGHT)], "non_preferred_output": [said(WRONG)]}
        ]
        * 3,
        PAIR,
    ),
    "llama-factory, alpaca": Shape(
        [
            {"instruction": ASKED, "input": "", "chosen": RIGHT, "rejected": WRONG, "system": "Be brief."}
            | {"history": [["Hi", "Hello."]]}
        ]
        * 3,
        PAIR,
    ),
    "llama-factory, sharegpt": Shape(
        [
            {"conversations": SHAREGPT, "chosen": {"from": "gpt", "value": RIGHT}}
            | {"rejected": {"from": "gpt", "value": WRONG}}
        ]
        * 3,
        PAIR,
    ),
    "llama-factory, kto": Shape(
        [{"messages": [*SHARED, said(RIGHT)], "label": label} for label in (True, False, True)], (ASKED, RIGHT, True)
    ),
    "llama-factory, kto in alpaca's columns": Shape(
        [{"instruction": ASKED, "input": "", "output": RIGHT, "kto_tag": tag} for tag in (True, False)],
        (ASKED, RIGHT, True),
    ),
    "ms-swift, rejected response": Shape(
        [{"messages": talk("Hi", "Hello.", ASKED, RIGHT), "rejected_response": WRONG}] * 3, PAIR
    ),
    "ms-swift, label": Shape(
        [{"messages": talk("Hi", "Hello.", ASKED, RIGHT), "label": label} for label in (True, False)],
        (ASKED, RIGHT, True),
    ),
    "axolotl, chat_template": Shape(
        [{"messages": talk("Hi", "Hello.", ASKED), "chosen": said(RIGHT), "rejected": said(WRONG)}] * 3, PAIR
    ),
    "axolotl, chosen_response": Shape(
        [{"instruction": ASKED, "chosen_response": RIGHT, "rejected_response": WRONG}] * 3, PAIR
    ),
    "distilabel": Shape(
        [{"instruction": ASKED, "generations": [RIGHT, WRONG, None], "ratings": [5, 1, None], "model_name": "m"}] * 3,
        {RIGHT: 5.0, WRONG: 1.0},
    ),
    "distilabel, ratings with nulls": Shape(
        [{"instruction": ASKED, "generations": [RIGHT, "Why?", WRONG], "ratings": [5, None, 1], "rationales": [""] * 3}]
        * 3,
        {RIGHT: 5.0, "Why?": None, WRONG: 1.0},
    ),
    "argilla": Shape(
        [
            {"source": "s", "instruction": ASKED, "chosen_response": RIGHT, "rejected_response": WRONG}
            | {"chosen_avg_rating": 5.0, "rejected_avg_rating": 2.5, "chosen_model": "m"}
        ]
        * 3,
        PAIR,
    ),
    "orca pairs": Shape([{"system": "", "question": ASKED, "chosen": RIGHT, "rejected": WRONG}] * 3, PAIR),
    "orca pairs by distilabel": Shape(
        [
            {"system": "Be brief.", "input": ASKED, "chosen": RIGHT, "rejected": WRONG, "generations": [RIGHT, WRONG]}
            | {"order": ["chosen", "rejected"], "rating": [9, 2], "status": "unchanged", "chosen_score": 9.0}
        ]
        * 3,
        PAIR,
    ),
    "capybara": Shape(
        [
            {"source": "s", "conversation": [{"input": "Hi", "output": "Hello."}], "original_response": RIGHT}
            | {"chosen": talk("Hi", "Hello.", ASKED, RIGHT), "rejected": talk("Hi", "Hello.", ASKED, WRONG)}
            | {"rating_chosen": 5, "rating_rejected": 2, "chosen_model": "m", "turns": 2}
        ]
        * 3,
        PAIR,
    ),
    "step-wise maths": Shape(
        [
            {
                "dataset": "d",
                "prompt": ASKED,
                "initial_reason_steps": "Step 1: so.\n",
                "chosen": "Light.",
                "answer": "3",
            }
            | {"rejected": "Paint.", "full_chosen": RIGHT, "full_rejected": WRONG}
        ]
        * 3,
        PAIR,
        {"columns": {"chosen": "full_chosen"}},
    ),
    "hhh alignment": Shape(
        [{"input": ASKED, "targets": {"choices": [RIGHT, WRONG], "labels": [1, 0]}}] * 3, {RIGHT: 1.0, WRONG: 0.0}
    ),
    "pandalm, columns of votes": Shape(
        [
            {"idx": 1, "instruction": ASKED, "input": "", **numbered("response1", "response2")}
            | {f"annotator{place}": vote for place, vote in enumerate(votes, 1)}
            for votes in ((2, 2, 1), (1, 1, 1), (0, 2, 2))
        ],
        (ASKED, RIGHT, WRONG, 1 - 1 / 3),
        {"votes": {"chosen": 1, "rejected": 2, "tie": 0}},
    ),
    "pandalm, a list of votes": Shape(
        [
            {"instruction": ASKED, "input": "", **numbered("response1", "response2"), "votes": votes}
            for votes in ([2, 2, 2], [1, 1, 1], [0, 2, 1])
        ],
        PAIR,
        {"votes": {"chosen": 1, "rejected": 2, "tie": 0}},
    ),
    "auto-j": Shape(
        [
            {"scenario": "s", "label": label, "prompt": ASKED, **numbered("response 1", "response 2")}
            for label in (1, 0, 2)
        ],
        PAIR,
        {"votes": {"chosen": 0, "rejected": 1, "tie": 2}},
    ),
    "llmbar": Shape([{"input": ASKED, **numbered("output_1", "output_2"), "label": label} for label in (2, 1)], PAIR),
    "alpacaeval annotations": Shape(
        [
            {"instruction": ASKED, **numbered("output_1", "output_2"), "generator_1": "m", "generator_2": "n"}
            | {"annotator": "a", "preference": preference}
            for preference in (2.0, 1.25, 1.5)
        ],
        PAIR,
    ),
    "reward-bench": Shape(
        [
            {"prompt": ASKED, "chosen": RIGHT, "chosen_model": "m", "rejected": WRONG, "rejected_model": "n"}
            | {"subset": "s", "id": 3}
        ]
        * 3,
        PAIR,
    ),
    "kto with 0 and 1": Shape(
        [{"prompt": ASKED, "completion": RIGHT, "label": label} for label in (1, 0)], (ASKED, RIGHT, True)
    ),
    "marks in words": Shape(
        [{"prompt": ASKED, "response": RIGHT, "feedback": word} for word in ("thumbs_up", "thumbs_down")],
        (ASKED, RIGHT, True),
    ),
    "tulu mixture": Shape(
        [
            {"id": "a", "source": "s", "prompt": ASKED, "chosen": [*SHARED, said(RIGHT)]}
            | {"rejected": [*SHARED, said(WRONG)], "chosen_rating": None, "rejected_rating": None}
        ]
        * 3,
        PAIR,
    ),
    "preference collection": Shape(
        [
            {"orig_instruction": ASKED, "orig_response_A": WRONG, "orig_response_B": RIGHT, "orig_preference": winner}
            | {"orig_criteria": "Is it right?", "instruction": "Which is better?", "output": "Feedback: ..."}
            for winner in ("B", "A")
        ],
        PAIR,
    ),
    "unified feedback": Shape(
        [
            {"id": "u", "conv_A": [*SHARED, said(WRONG)], "conv_B": [*SHARED, said(RIGHT)], "num_turns": 2}
            | {"conv_A_rating": 2.0 if label == 0 else 5.0, "conv_B_rating": 5.0 if label == 0 else 2.0, "label": label}
            for label in (0, 1, 1)
        ],
        PAIR,
    ),
    "safe or not": Shape(
        [{"prompt": ASKED, "response": RIGHT, "category": {"theft": False}, "is_safe": safe} for safe in (True, False)],
        (ASKED, RIGHT, True),
    ),
    "accepted and rejected": Shape([{"input": ASKED, "accepted": RIGHT, "rejected": WRONG}] * 3, PAIR),
}
