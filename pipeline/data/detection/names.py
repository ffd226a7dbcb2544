"""Names that columns of public preference data have. Torch-free."""

# The first is the preferred one.
CERTAIN_PAIRS = (
    ("chosen", "rejected"),
    ("full_chosen", "full_rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_response", "dispreferred_response"),
    ("preferred", "dispreferred"),
    ("response_j", "response_k"),
    ("better_response", "worse_response"),
    ("better", "worse"),
    ("accepted", "rejected"),
    ("winner_response", "loser_response"),
    ("messages", "rejected_messages"),
    ("messages", "rejected_response"),
    ("conversations", "rejected_conversations"),
    ("response", "rejected_response"),
    ("completion", "rejected_completion"),
    ("output", "rejected_output"),
)
# What columns of two responses are called, before the mark that tells one from the other; it may be all.
ANSWER_STEMS = (
    "",
    *("response", "responses", "output", "answer", "completion", "conversation", "human_ref", "text", "summary"),
    *(
        "candidate",
        "generation",
        "reply",
        "result",
        "solution",
        "model_output",
        "dialogue",
        "messages",
        "assistant",
        "conv",
    ),
)
# What their names may end with before the mark, after a word of the data set's own: orig_response_A.
STEM_ENDS = ("_response", "_output", "_answer", "_completion", "_summary", "_solution", "_generation")
# Marks that tell one response from the other.
PAIR_MARKS = (("0", "1"), ("1", "2"), ("a", "b"))
# Columns that say which of two responses is the better one.
DECIDERS = (
    *("votes", "vote", "winner", "preference", "preferred", "choice", "label", "labels", "better", "chosen_id"),
    *("human_preference", "overall_preference", "preference_strength", "individual_preference.score"),
    *("preferred_response", "best", "winner_id", "preference_label", "human_label", "gpt4_preference"),
)
DECIDER_ENDS = ("_response_id", "_preference", "_winner", "_choice")
# Signed numbers that are negative where the first response is better.
FIRST_IS_NEGATIVE = ("overall_preference", "preference_strength", "individual_preference.score")
TIES = ("tie", "both", "equal", "draw", "neither", "same")
# Scores of chosen and rejected; {} is the side.
SIDE_SCORES = (
    *("{}_score", "score_{}", "{}_rating", "{}-rating", "rating_{}", "{}_avg_rating", "{}_reward", "reward_{}"),
    *("{}-score", "{}.score"),
)
# Numbers of one response, by the mark of its column.
MARKED_SCORES = ("score", "rating", "reward")
# Lists of responses.
RESPONSES = ("responses", "generations", "completions", "answers", "choices", "outputs", "candidates", "solutions")
# Fields with the text of one of several responses, in lists of objects.
ANSWER_FIELDS = (
    *("response", "answer", "text", "content", "output", "completion", "generation", "summary", "solution", "message"),
)
RANKS = ("rank", "ranks", "ranking", "rankings")
# Words in the names of numbers that are higher for the better response (or ranks), and words of other numbers.
SCORES = (
    *("score", "scores", "rating", "ratings", "reward", "rewards", "correct", "correctness", "label", "labels"),
    *("quality", "helpful", "helpfulness", "preference", "preferences", "grade", "grades", "vote", "votes", *RANKS),
)
NOT_SCORES = ("id", "ids", "idx", "index", "length", "len", "tokens", "count", "time", "date", "error", "loss")
# Single responses and their marks.
COMPLETIONS = ("completion", "response", "output", "answer", "messages", "conversations", "conversation")
GOOD_OR_BAD = (
    *("label", "labels", "kto_tag", "desirable", "is_desirable", "is_good", "thumbs", "feedback", "liked", "is_safe"),
    *("is_correct", "correct"),
)
GOOD_WORDS = ("good", "thumbs_up", "thumbsup", "up", "positive", "yes", "like", "liked", "accepted", "desirable", "+1")
BAD_WORDS = (
    *("bad", "thumbs_down", "thumbsdown", "down", "negative", "no", "dislike", "disliked", "rejected", "undesirable"),
    "-1",
)
# Prompts, the likeliest first; several columns are joined.
PROMPT_COLUMNS: tuple[str | tuple[str, ...], ...] = (
    "prompt",
    ("instruction", "input"),
    ("instruction", "context"),
    "instruction",
    "question",
    "question.full_text",
    "query",
    "context",
    "post",
    "history",
    ("info.post", "info.article"),
    "info.post",
    "input.messages",
    "input",
    "conversations",
    "conversation",
    "messages",
    "problem",
    "request",
    "user",
    "inputs",
    "text",
)
# Whole conversations: prompts with the reference response.
CONVERSATIONS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt", "system_message")
# Of prompts alone: texts that gold scorers compare with, and reference responses.
REFERENCES = ("answer", "ground_truth", "reference_answer", "final_answer")
