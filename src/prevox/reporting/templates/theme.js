// Light, dark, or as the system wants it: the button goes through the three.
"use strict";
(() => {
  const button = document.getElementById("theme");
  const next = {system: "dark", dark: "light", light: "system"};
  let theme = "system";
  const show = () => {
    button.textContent = `Theme: ${theme}`;
    document.documentElement.dataset.theme = theme;
  };
  button.addEventListener("click", () => {
    theme = next[theme];
    show();
  });
  button.hidden = false;
  show();
})();
