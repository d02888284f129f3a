// Server-sent events out of the body of an answer: the browser's own EventSource can send no key.

/**
 * Reads a stream to its end.
 * @param {Response} response
 * @param {(event: string, data: string) => void} take called for each event that has data
 * @param {number} silence milliseconds in which something has to come, were it but a comment
 * @throws when the connection breaks, or has gone silent
 */
export async function readEvents(response, take, silence) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const takeLine = lineReader(take);
  let rest = "";
  for (;;) {
    const { value, done } = await readWithin(reader, silence);
    if (done) {
      return;
    }
    // A CR at the end may be the half of a line's end: it waits for what follows.
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    lines.forEach(takeLine);
  }
}

/** What comes next. Where nothing does in time, the connection is given up. */
async function readWithin(reader, silence) {
  let timer = null;
  const silent = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing has come for ${silence / 1000} s`)), silence);
  });
  try {
    return await Promise.race([reader.read(), silent]);
  } catch (error) {
    reader.cancel(error).catch(() => {}); // it may be broken already
    throw error;
  } finally {
    clearTimeout(timer);
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
