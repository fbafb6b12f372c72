"use strict";
(() => {
  for (const box of document.querySelectorAll(".slider")) {
    const frames = [...box.querySelectorAll(".frame")];
    const range = box.querySelector("input[type=range]");
    const words = box.querySelector("output");
    const show = () => {
      const step = Number(range.value);
      frames.forEach((frame, number) => { frame.hidden = number !== step; });
      words.textContent = frames[step].dataset.label;
      range.setAttribute("aria-valuetext", frames[step].dataset.label);
    };
    range.addEventListener("input", show);
    box.querySelector(".choices").hidden = false;
    // A browser may remember where the range stood when the page was last open.
    show();
  }
})();
