// Requests with the key that a server wants. The key lives as long as the tab, and is asked for when a server wants one.

import { byId, setText } from "/assets/dom.js";

const STORE = "muster.key";
const REFUSED = new Set([401, 403]);

let key = sessionStorage.getItem(STORE);
let asking = null;
const listeners = [];

/** Somebody was asked for a key and gave none. */
export class NoKey extends Error {
  constructor(reason) {
    super(reason);
    this.name = "NoKey";
  }
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

function send(path, options) {
  const headers = new Headers(options.headers);
  if (key) {
    headers.set("authorization", `Bearer ${key}`);
  }
  return fetch(path, { cache: "no-store", ...options, headers });
}

/** A refusal that is not about the key says so; one of a proxy says nothing that is known here. */
async function wantsKey(response) {
  if (!REFUSED.has(response.status)) {
    return false;
  }
  const body = await response.clone().json().catch(() => null);
  return body?.kind !== "forbidden";
}

/**
 * Asks the server, and for a key where it wants one.
 * @returns {Promise<Response>} any answer but a refusal of the key
 * @throws {NoKey} where no key was given
 */
export async function request(path, options = {}) {
  for (;;) {
    const used = key;
    const response = await send(path, options);
    if (!(await wantsKey(response))) {
      return response;
    }
    const reason = await reasonOf(response);
    if (key === used) {
      await askForKey(reason); // otherwise another request has brought a key meanwhile
    }
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

/** Opens the dialog, once however many requests want a key. */
export function askForKey(reason) {
  asking ??= open(reason).finally(() => {
    asking = null;
  });
  return asking;
}

function open(reason) {
  const dialog = byId("key-dialog");
  const input = byId("key-input");
  setText(byId("key-reason"), reason);
  input.value = "";
  return new Promise((resolve, reject) => {
    const close = (given) => {
      dialog.removeEventListener("submit", submitted);
      dialog.removeEventListener("close", closed);
      dialog.removeEventListener("click", clicked);
      dialog.close();
      if (given) {
        keep(given);
        resolve();
      } else {
        reject(new NoKey(reason));
      }
    };
    const submitted = (event) => {
      event.preventDefault();
      if (input.value.trim()) {
        close(input.value.trim());
      }
    };
    // The event of an earlier closing may come only now, when the dialog is open again.
    const closed = () => dialog.open || close(null);
    const clicked = (event) => {
      if (event.target.closest("[data-cancel]")) {
        close(null);
      }
    };
    dialog.addEventListener("submit", submitted);
    dialog.addEventListener("close", closed);
    dialog.addEventListener("click", clicked);
    dialog.showModal();
    input.focus();
  });
}
