// Server-sent events out of the body of an answer: the browser's own EventSource can send no key.

/**
 * Reads a stream to its end.
 * @param {Response} response
 * @param {(event: string, data: string) => void} take called for each event that has data
 * @throws when the connection breaks
 */
export async function readEvents(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const takeLine = lineReader(take);
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    // A CR at the end may be the half of a line's end: it waits for what follows.
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    lines.forEach(takeLine);
  }
}

function lineReader(take) {
  let event = "message";
  let data = [];
  return (line) => {
    if (line === "") {
      if (data.length > 0) {
        take(event, data.join("\n"));
      }
      event = "message";
      data = [];
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") {
      event = value;
    } else if (field === "data") {
      data.push(value);
    }
  };
}
