// Requests with the key that a server wants. The key lives as long as the tab, and is asked for when a server wants one.

import { byId, setText } from "/assets/dom.js";

const STORE = "muster.key";
const REFUSED = new Set([401, 403]);
/** A header takes no other characters; typographic quotes come along when a key is copied out of a text. */
const VALID = /^[\x21-\x7e]+$/;
const INVALID = "A key has only letters, digits and signs of ASCII, and no spaces: this one has something else in it.";

let key = stored();
let asking = null;
const listeners = [];

/** Somebody was asked for a key and gave none. */
export class NoKey extends Error {
  constructor(reason) {
    super(reason);
    this.name = "NoKey";
  }
}

function stored() {
  const kept = sessionStorage.getItem(STORE);
  return kept !== null && VALID.test(kept) ? kept : null;
}

/** The key in use, or `null`. */
export const currentKey = () => key;

/** Calls `listener` whenever there is another key, or none any more. */
export function onKey(listener) {
  listeners.push(listener);
}

function keep(given) {
  key = given;
  if (given) {
    sessionStorage.setItem(STORE, given);
  } else {
    sessionStorage.removeItem(STORE);
  }
  listeners.forEach((listener) => listener(key));
}

/** Forgets the key. */
export const forgetKey = () => keep(null);

/** Sends with a key; `patience`: milliseconds after which an answer should have begun. */
async function send(path, { patience, ...options }, used) {
  const headers = new Headers(options.headers);
  if (used) {
    headers.set("authorization", `Bearer ${used}`);
  }
  const late = new AbortController();
  const signal = options.signal ? AbortSignal.any([options.signal, late.signal]) : late.signal;
  const giveUp = () => late.abort(new Error(`no answer for ${patience / 1000} s`));
  const timer = patience === undefined ? null : setTimeout(giveUp, patience);
  try {
    return await fetch(path, { cache: "no-store", ...options, headers, signal });
  } finally {
    clearTimeout(timer);
  }
}

/** A refusal that is not about the key says so; one of a proxy says nothing that is known here. */
async function wantsKey(response) {
  if (!REFUSED.has(response.status)) {
    return false;
  }
  const body = await response.clone().json().catch(() => null);
  return body?.kind !== "forbidden";
}

/** An answer has to begin within so long, in milliseconds, unless a model has to think for it. */
export const PATIENCE = 6000;

/**
 * Asks the server, and for a key where it wants one. A key that was given takes the place of the one before it when the
 * server has taken it.
 * @param options those of `fetch`; `patience` in milliseconds, within which an answer has to begin; `dialog` with the
 *   `title` and the `label` of the dialog for a key, `null` for none
 * @returns {Promise<Response>} any answer but a refusal of the key
 * @throws {NoKey} where no key was given
 */
export async function request(path, { dialog = {}, ...options } = {}) {
  let given = null;
  for (;;) {
    const known = key;
    const response = await send(path, options, given ?? known);
    if (!(await wantsKey(response))) {
      if (given && given !== key) {
        keep(given);
      }
      return response;
    }
    const reason = await reasonOf(response);
    if (dialog === null) {
      throw new NoKey(reason);
    }
    // Another request may have brought a key meanwhile.
    given = key === known ? await askForKey(reason, dialog) : null;
  }
}

/** What a server says is wrong, in its words. */
export async function reasonOf(response) {
  const text = await response.text().catch(() => "");
  try {
    const body = JSON.parse(text);
    const reason = body.error?.message ?? body.message ?? body.error;
    if (typeof reason === "string") {
      return reason;
    }
  } catch {
    // Not ours, or cut off: it is shown as it is.
  }
  return text.slice(0, 300) || `status ${response.status}`;
}

/** Opens the dialog, once however many requests want a key, and gives what was typed. */
function askForKey(reason, words) {
  asking ??= open(reason, words).finally(() => {
    asking = null;
  });
  return asking;
}

/** Sets the words of the dialog; where none are given, those that the page came with. */
function setWords(reason, { title, label }) {
  for (const [id, words] of [["key-title", title], ["key-label", label]]) {
    byId(id).dataset.words ??= byId(id).textContent;
    setText(byId(id), words ?? byId(id).dataset.words);
  }
  setText(byId("key-reason"), reason);
}

function open(reason, words) {
  const dialog = byId("key-dialog");
  const input = byId("key-input");
  setWords(reason, words);
  input.value = "";
  input.setCustomValidity("");
  return new Promise((resolve, reject) => {
    const listeners = new AbortController();
    const listen = (event, listener) => dialog.addEventListener(event, listener, { signal: listeners.signal });
    const close = (given) => {
      listeners.abort();
      dialog.close();
      if (given) {
        resolve(given);
      } else {
        reject(new NoKey(reason));
      }
    };
    // A key that cannot be sent is said to be one before it is: the event of sending comes only where all is valid.
    listen("input", () => {
      const typed = input.value.trim();
      input.setCustomValidity(typed === "" || VALID.test(typed) ? "" : INVALID);
    });
    listen("submit", (event) => {
      event.preventDefault();
      if (VALID.test(input.value.trim())) {
        close(input.value.trim());
      }
    });
    listen("click", (event) => event.target.closest("[data-cancel]") && close(null));
    listen("close", () => dialog.open || close(null)); // else it is the event of an earlier closing
    dialog.showModal();
    input.focus();
  });
}
