// What went wrong, and what to do about it.

/** Why the gateway took no job, as `{title, text}`. */
export function refusal(refused) {
  const { status, code, message, retryAfter } = refused;
  if (status === 0) {
    return {
      title: "The gateway does not answer",
      text: "Check that millstream-gateway is running and that this machine reaches it, then try again. A question that did arrive is not asked twice.",
    };
  }
  const [title, advice] = remedy(status, code, retryAfter);
  return { title, text: `${sentence(message)} ${advice}` };
}

function remedy(status, code, retryAfter) {
  const wait = retryAfter ? `in ${retryAfter}\u00a0s` : "in a moment";
  if (code === "queue_full") {
    return ["The queue is full", `No job was dropped for yours. Try again ${wait}, or start another worker.`];
  }
  switch (status) {
    case 401:
      return ["The gateway does not accept this key", "Enter a valid key below, then try again."];
    case 403:
      return ["This key may not do that", "Use a key with the right that is missing."];
    case 413:
      return ["The conversation is too long", "Start a new one, or ask with less text."];
    case 429:
      return ["Too many requests", `Try again ${wait}.`];
    case 503:
      return ["The gateway cannot take jobs now", `It recovers by itself. Try again ${wait}.`];
    default:
      return status < 500
        ? ["The gateway refused the question", "Change the question or the model, then try again."]
        : ["The gateway failed", `Try again ${wait}; its log says why.`];
  }
}

const REMEDIES = {
  invalid_request: "Check the model's name and the length of the question, then ask again.",
  upstream_auth: "The worker's key for the model is refused: set OPENAI_API_KEY where the worker runs.",
  rate_limited: "The model is asked too often. Ask again later, or raise the limit.",
  upstream_error: "The model's server has trouble. Ask again later.",
  upstream_connection: "The worker does not reach the model: check OPENAI_BASE_URL where it runs.",
  timeout: "The model was too slow. Ask again, or for less.",
  expired: "It had waited too long. Check that a worker is running, then ask again.",
  poison: "The workers that took it died. Look at their logs before you ask again.",
};

/** Why a job failed, as `{title, text}`. */
export function failure(error, attempts) {
  const tried = attempts > 1 ? `No answer after ${attempts} attempts` : "No answer from the model";
  if (!error) return { title: tried, text: "Ask again, or choose another model." };
  const remedy = REMEDIES[error.code] ?? "Ask again, or choose another model.";
  return { title: tried, text: `${sentence(error.message)} ${remedy}` };
}

/** Why an answer that is over is not all that could be said; empty where it is. */
export function finish(reason) {
  switch (reason) {
    case "length":
      return "Cut off: the answer reached the limit of its length. Ask for the rest, or for less at once.";
    case "content_filter":
      return "Cut off by the content filter of the model's endpoint. Ask in another way.";
    case "tool_calls":
    case "function_call":
      return "The model asks for a tool, and this page has none to call.";
    default:
      return "";
  }
}

/** Why a job can no longer be followed, as `{title, text}`. */
export function loss(refused) {
  if (refused.status === 404) {
    return {
      title: "The job is gone",
      text: "Its record has expired, or it belongs to another tenant. What had arrived stays; ask again for a whole answer.",
    };
  }
  return refusal(refused);
}

/** The gateway's sentences are written for logs: without a capital, without an end. */
function sentence(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** Milliseconds for people. */
export function span(ms) {
  return ms < 10_000 ? `${(ms / 1000).toFixed(1)}\u00a0s` : `${Math.round(ms / 1000)}\u00a0s`;
}
