// What a model says: text, a refusal, and what it thinks before. Endpoints have several names for the last.

/** Adds a delta to what has been said so far: `text`, `refusal` and `thoughts` of `answer`. */
export function heard(answer, delta) {
  const more = said(delta);
  for (const part of ["text", "refusal", "thoughts"]) answer[part] = (answer[part] ?? "") + more[part];
}

/** What a message or a delta says. */
export function said(message) {
  const { content, refusal, reasoning_content: hidden, reasoning } = message ?? {};
  const parts = Array.isArray(content) ? content : [];
  const thought = parts.filter(({ type }) => type === "thinking").map(({ thinking }) => words(thinking));
  return {
    text: words(content),
    refusal: words(refusal),
    thoughts: words(hidden ?? reasoning) + thought.join(""),
  };
}

/** A text, or the text parts of a list. */
function words(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map(({ type, text }) => (type === "text" ? (text ?? "") : "")).join("");
}
