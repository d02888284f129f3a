// The connection to the controller: it is taken up again, whatever ended it, and a silent one counts as ended.

import { NoKey, reasonOf, request } from "/assets/key.js";
import { readEvents } from "/assets/sse.js";

const FIRST_PAUSE = 250;
const LONGEST_PAUSE = 5000;
/** An update comes each second; without one for so long there is nobody at the other end. */
const SILENCE = 6000;

export class Stream {
  #listener;
  #pause = FIRST_PAUSE;
  #wake = null;
  #isPausing = false;

  /** @param listener has `topology`, `update`, `lost(reason, pause)` and `refused(reason)`. */
  constructor(listener) {
    this.#listener = listener;
    addEventListener("online", () => this.#nudge());
    document.addEventListener("visibilitychange", () => document.hidden || this.#nudge());
  }

  /** Tries at once where it waits to try. */
  retry() {
    this.#wake?.();
  }

  /** The same, but nobody who has refused to give a key is asked for it again. */
  #nudge() {
    if (this.#isPausing) {
      this.retry();
    }
  }

  async run() {
    for (;;) {
      try {
        await this.#read();
        await this.#rest("the controller has ended the connection");
      } catch (error) {
        if (error instanceof NoKey) {
          this.#listener.refused(error.message);
          await this.#sleep(null);
        } else {
          await this.#rest(error.message);
        }
      }
    }
  }

  async #read() {
    const abort = new AbortController();
    let watchdog = null;
    const heard = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => abort.abort(new Error("the controller says nothing")), SILENCE);
    };
    try {
      const response = await request("/events", { signal: abort.signal, headers: { accept: "text/event-stream" } });
      if (!response.ok) {
        throw new Error(await reasonOf(response));
      }
      heard();
      await readEvents(response, (event, data) => {
        heard();
        this.#take(event, data);
      });
    } finally {
      clearTimeout(watchdog);
      abort.abort();
    }
  }

  #take(event, data) {
    if (event === "topology" || event === "update") {
      this.#pause = FIRST_PAUSE;
      this.#listener[event](JSON.parse(data));
    }
  }

  async #rest(reason) {
    const pause = this.#pause;
    this.#pause = Math.min(LONGEST_PAUSE, this.#pause * 2);
    this.#listener.lost(reason, pause);
    this.#isPausing = true;
    await this.#sleep(pause);
    this.#isPausing = false;
  }

  /** Until the pause is over or somebody is impatient; `null`: until then only. */
  #sleep(pause) {
    return new Promise((resolve) => {
      const timer = pause === null ? null : setTimeout(resolve, pause);
      this.#wake = () => {
        clearTimeout(timer);
        this.#wake = null;
        resolve();
      };
    });
  }
}
