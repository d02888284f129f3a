// Light or dark. Loaded before the page is drawn, so that a chosen theme does not flash up in the other one's colours.
"use strict";
(() => {
  const KEY = "muster.theme";
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const read = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // a browser that stores nothing follows the system
    }
  };
  const store = (theme) => {
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // It holds until the page is loaded anew.
    }
  };
  let chosen = read();
  const isDark = () => (chosen === "dark" || chosen === "light" ? chosen === "dark" : system.matches);

  const apply = () => {
    root.dataset.theme = isDark() ? "dark" : "light";
    const button = document.querySelector("[data-theme-toggle]");
    if (button) {
      button.setAttribute("aria-label", isDark() ? "Switch to the light theme" : "Switch to the dark theme");
    }
  };

  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", apply);
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-theme-toggle]")) {
      return;
    }
    chosen = isDark() ? "light" : "dark";
    store(chosen);
    apply();
  });
})();
