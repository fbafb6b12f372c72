"use strict";
// What the explorer's page is built from: questions to the server, and panels that draw a volume and save it. Text from data
// goes in by textContent.
window.nilatent.explorer = (() => {
  const { visible, save, button } = window.nilatent;
  const { Niivue, NVImage } = window.niivue;
  const find = (id) => document.getElementById(id);
  const minus = (text) => text.replace(/^-/, "−");
  const TOP_CODE = 32767;
  const SLOPE_AT = 112;
  const HEADER_BYTES = 352;
  const LOOK = {
    logLevel: "silent", isColorbar: true, show3Dcrosshair: false, dragAndDropEnabled: false, isOrientationTextVisible: true, isCornerOrientationText: true,
    isRadiologicalConvention: false, backColor: [0, 0, 0, 1], crosshairColor: [0.9, 0.6, 0.1, 0.7], crosshairWidth: 0.3,
    fontMinPx: 12, fontSizeScaling: 0.3, fontColor: [0.92, 0.92, 0.92, 1], colorbarHeight: 0.05, multiplanarShowRender: 0, multiplanarEqualSize: false, tileMargin: 2,
  };

  const fault = (error) => {
    find("fault").hidden = !error;
    if (error) find("fault").textContent = visible(error.message ?? error);
  };
  // From the address, and kept for this tab alone: it need not stand in the history, nor in a cookie that other servers see.
  const token = new URLSearchParams(location.search).get("token") ?? sessionStorage.getItem("token") ?? "";
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", "/");
  const ask = async (path, body) => {
    const headers = { "X-Nilatent-Token": token, ...(body ? { "Content-Type": "application/json" } : {}) };
    const how = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
    const answer = await fetch(path, how).catch(() => { throw new Error("The explorer does not answer: nilatent explore was ended."); });
    if (answer.ok) return answer;
    throw new Error((await answer.json().catch(() => ({}))).error ?? `The explorer refused this (${answer.status}).`);
  };
  const query = (path, values) => `${path}?${new URLSearchParams(values)}`;

  // ------------------------------------------------------------------------------------------------------------ panels
  const panels = {};
  const width = () => Math.max(Number(find("width").value) || 0, 1e-12);

  // `study`: what the server says of the run.
  const panelOf = (figure, study) => {
    const limits = (signed) => (signed ? [-width(), width()] : study.limits);
    const canvas = figure.querySelector("canvas");
    const caption = figure.querySelector("figcaption");
    const tools = Object.assign(document.createElement("p"), { className: "save", hidden: true });
    caption.after(tools);
    const self = { figure, canvas, view: null, now: null, peak: 0 };

    const opened = async () => {
      const view = new Niivue(LOOK);
      await view.attachToCanvas(canvas);
      view.setMultiplanarLayout(0);
      view.setSliceType(view.sliceTypeMultiplanar);
      view.addColormap("amount", study.amount_colours);
      view.addColormap("signed", study.signed_colours);
      view.setRadiologicalConvention(find("side").value === "right");
      return view;
    };

    const replace = async (view, buffer, signed) => {
      const [low, high] = limits(signed);
      const made = await NVImage.new(buffer, "volume.nii", signed ? "signed" : "amount", 1, null, low, high, true);
      while (view.volumes.length) view.removeVolumeByIndex(0);
      view.addVolume(made);
    };
    // `what`: request {path, body}, title, words, name of a file, signed, key.
    self.show = async (buffer, what) => {
      try {
        const isFirst = !self.view;
        self.view ??= opened();
        const view = await self.view;
        const slope = new DataView(buffer).getFloat32(SLOPE_AT, true);
        if (self.now?.signed === what.signed && view.volumes.length) {
          // All volumes of a run lie on one grid: only their numbers change, and nothing is read or arranged again.
          view.volumes[0].img = new Int16Array(buffer, HEADER_BYTES);
          view.volumes[0].hdr.scl_slope = slope;
        } else {
          await replace(view, buffer, what.signed);
        }
        self.now = what;
        self.peak = slope * TOP_CODE;
        self.range(view);
        if (isFirst) tie();
      } catch (error) {
        throw new Error(`This browser cannot draw the volume (${error.message ?? error}). It needs WebGL 2.`);
      }
    };
    self.range = (view) => {
      const [low, high] = limits(self.now.signed);
      Object.assign(view.volumes[0], { cal_min: low, cal_max: high });
      view.updateGLVolume();
      const bar = `${study.unit}, colours from ${minus(String(low))} to ${high}`;
      caption.replaceChildren(Object.assign(document.createElement("b"), { textContent: visible(self.now.title) }), ` ${visible(self.now.words)} `, bar);
      canvas.setAttribute("aria-label", visible(`${self.now.title} ${self.now.words} Three slices; ${bar}.`));
      tools.hidden = false;
      figure.dataset.shown = self.now.key;
      figure.dataset.count = String(Number(figure.dataset.count ?? 0) + 1);
    };
    self.again = async () => {
      if (self.now) self.range(await self.view);
    };

    const png = async () => {
      const view = await self.view;
      view.drawScene();
      const made = document.createElement("canvas");
      const line = Math.round(canvas.width / 42) + 6;
      Object.assign(made, { width: canvas.width, height: canvas.height + 3 * line });
      const context = made.getContext("2d");
      context.fillStyle = "#000000";
      context.fillRect(0, 0, made.width, made.height);
      context.drawImage(canvas, 0, 0);
      context.fillStyle = "#ffffff";
      context.font = `${line - 6}px sans-serif`;
      const side = find("side").value === "left" ? "Left is on the left." : "Left is on the right.";
      [self.now.title, self.now.words, `${canvas.getAttribute("aria-label").split("; ").pop()} ${side}`].forEach((text, row) => {
        context.fillText(visible(text), 6, canvas.height + (row + 0.8) * line, made.width - 12);
      });
      made.toBlob((blob) => save(`${self.now.file}.png`, blob));
    };
    const nifti = async () => {
      const { path, body } = self.now.request;
      const answer = await (body ? ask(path, { ...body, exact: true }) : ask(`${path}&exact=true`));
      save(`${self.now.file}.nii`, await answer.blob());
    };
    const tried = (act) => () => act().then(() => fault(null), fault);
    tools.append(button("Save as PNG", tried(png)), button("Save as NIfTI", tried(nifti)));
    return self;
  };

  // A click in one panel moves the cross of the others.
  const tie = async () => {
    const open = await Promise.all(Object.values(panels).map((panel) => panel.view).filter(Boolean));
    open.forEach((view) => view.broadcastTo(open.filter((other) => other !== view), { "2d": true }));
  };

  // Of questions that come faster than answers, the last one counts.
  const latest = (act) => {
    let running = false;
    let waiting = null;
    const run = async (...values) => {
      if (running) { waiting = values; return; }
      running = true;
      try {
        await act(...values);
        fault(null);
      } catch (error) {
        fault(error);
      } finally {
        running = false;
      }
      if (waiting) { const next = waiting; waiting = null; await run(...next); }
    };
    return run;
  };
  const busy = async (panel, act) => {
    panel.figure.setAttribute("aria-busy", "true");
    try { await act(); } finally { panel.figure.removeAttribute("aria-busy"); }
  };

  return { find, minus, fault, ask, query, panels, panelOf, latest, busy };
})();
