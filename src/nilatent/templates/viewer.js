"use strict";
// Volumes in NiiVue: the brain behind a dot of the scatter, and the region behind a row of a table. Nothing is drawn, and no
// volume unpacked, before it is asked for.
(() => {
  const page = window.nilatent;
  // What a click may look for is in the document only when all of it has been read.
  const whole = document.readyState === "loading" ? new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true })) : Promise.resolve();
  // A script put in by a script runs at once, where the page's policy knows its hash.
  const library = () => {
    if (!window.niivue) document.head.append(Object.assign(document.createElement("script"), { textContent: document.querySelector("script[data-held]").textContent }));
    return window.niivue;
  };
  const HEADER_BYTES = 352;
  const LOOK = {
    logLevel: "silent", isColorbar: true, show3Dcrosshair: false, dragAndDropEnabled: false, isRadiologicalConvention: false,
    isOrientationTextVisible: true, showAllOrientationMarkers: true, isCornerOrientationText: true, fontColor: [1, 1, 1, 1],
    fontMinPx: 15, backColor: [0, 0, 0, 1], crosshairColor: [0.9, 0.6, 0.1, 0.7], crosshairWidth: 1.5, crosshairWidthUnit: "mm",
    multiplanarShowRender: 0,
  };

  const bytesOf = (base64) => Uint8Array.from(atob(base64.trim()), (letter) => letter.charCodeAt(0));
  const unpacked = async (base64) => {
    const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const nifti = (header, values) => {
    const file = new Uint8Array(HEADER_BYTES + values.byteLength);
    file.set(bytesOf(header));
    file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), HEADER_BYTES);
    return file;
  };
  const base64Of = (bytes) => {
    let text = "";
    for (let start = 0; start < bytes.length; start += 32768) text += String.fromCharCode(...bytes.subarray(start, start + 32768));
    return btoa(text);
  };
  const image = async (file, name, look) => {
    const made = await library().NVImage.loadFromBase64({ base64: base64Of(file), name: `${name}.nii` });
    return Object.assign(made, look);
  };
  const opened = async (canvas, colours) => {
    await whole;
    const view = new (library().Niivue)(LOOK);
    await view.attachToCanvas(canvas);
    view.setMultiplanarLayout(2);
    view.setSliceType(view.sliceTypeMultiplanar);
    Object.entries(colours).forEach(([name, map]) => view.addColormap(name, map));
    return view;
  };
  const cannot = (error) => `This browser cannot draw the volumes (${error.message ?? error}). They need WebGL 2.`;

  const scans = (box) => {
    const settings = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    const select = box.querySelector('[data-role="scan"]');
    const said = box.querySelector('[data-role="said"]');
    const title = box.querySelector('[data-role="title"]');
    const places = new Map(settings.scans.map((scan, place) => [scan.id, place]));
    const listeners = [];
    const files = {};
    let views = null;
    let asked = 0;
    box.hidden = false;
    select.append(new Option("choose a scan", ""));
    settings.scans.forEach((scan) => select.append(new Option(page.visible(scan.id), scan.id)));

    const range = { original: [settings.low, settings.high], model: [settings.low, settings.high] };
    range.error = [-settings.error_limit, settings.error_limit];
    for (const figure of box.querySelectorAll("figure[data-kind]")) {
      const [low, high] = range[figure.dataset.kind].map((value) => Number(value.toPrecision(2)));
      figure.querySelector(".unit").textContent = `(${settings.unit}, from ${low} to ${high})`.replace(/-/g, "−").replace("grey−", "grey-");
      figure.querySelector("[data-save]").addEventListener("click", () => {
        const kind = figure.dataset.kind;
        if (files[kind]) page.save(`${files.scan}_${kind}.nii`, files[kind], "application/octet-stream");
      });
    }

    const volumes = async (place) => {
      const codes = await unpacked(document.querySelector(`script[data-volume="${place}"]`).textContent);
      const half = codes.length / 2;
      const error = new Float32Array(half);
      for (let voxel = 0; voxel < half; voxel += 1) error[voxel] = (codes[half + voxel] - codes[voxel]) * settings.slope;
      return {
        original: nifti(settings.header, codes.subarray(0, half)),
        model: nifti(settings.header, codes.subarray(half)),
        error: nifti(settings.error_header, error),
      };
    };

    const start = async () => {
      const made = {};
      for (const figure of box.querySelectorAll("figure[data-kind]")) {
        made[figure.dataset.kind] = await opened(figure.querySelector("canvas"), { amount: settings.amount_colours, signed: settings.error_colours });
        if (figure.dataset.kind !== "error") continue;
        // What is beside the volume has the colour of no error.
        const { R, G, B, I } = settings.error_colours;
        const none = I.findIndex((step) => step >= 127);
        made.error.opts.backColor = [R[none] / 255, G[none] / 255, B[none] / 255, 1];
      }
      const all = Object.values(made);
      all.forEach((view) => view.broadcastTo(all.filter((other) => other !== view), { "2d": true }));
      return made;
    };

    const show = async (scan) => {
      asked += 1;
      const mine = asked;
      const place = places.get(scan);
      title.textContent = page.visible(scan);
      select.value = place === undefined ? "" : scan;
      listeners.forEach((act) => act(scan));
      box.dataset.shown = "";
      if (place === undefined) {
        box.querySelector(".volumes").hidden = true;
        said.textContent = page.visible(
          `The volumes of ${scan} are not in this file, which holds ${places.size} of ${settings.n_all} scans. “nilatent explore” shows every scan.`,
        );
        return;
      }
      said.textContent = settings.scans[place].unseen
        ? "Reconstructed by the study’s model, which has not seen this person."
        : "Reconstructed by the study’s model, which was trained or chosen with this person: its error is that of a brain it knows.";
      box.querySelector(".volumes").hidden = false;
      box.querySelector('[data-role="how"]').hidden = false;
      try {
        await whole;
        views ??= start();
        const made = await views;
        const found = await volumes(place);
        for (const [kind, view] of Object.entries(made)) {
          const [low, high] = range[kind];
          const look = { colormap: kind === "error" ? "signed" : "amount", cal_min: low, cal_max: high };
          const next = await image(found[kind], kind, look);
          // A later click may have overtaken this one.
          if (mine !== asked) return;
          while (view.volumes.length) view.removeVolumeByIndex(0);
          view.addVolume(next);
          view.volumes[0].cal_min = low;
          view.volumes[0].cal_max = high;
          view.updateGLVolume();
          view.canvas.setAttribute("aria-label", page.visible(`${kind === "model" ? "reconstruction" : kind} of ${scan}, three slices`));
        }
        Object.assign(files, found, { scan });
        box.dataset.shown = scan;
      } catch (error) {
        box.querySelector(".volumes").hidden = true;
        said.textContent = cannot(error);
      }
    };
    select.addEventListener("change", () => { if (select.value) show(select.value); });
    page.viewer = { show, onShow: (act) => listeners.push(act) };
  };

  const regions = (box) => {
    const settings = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
    const labelOf = new Map(settings.names);
    const said = box.querySelector('[data-role="said"]');
    let ready = null;
    let marked = null;

    const start = async () => {
      const view = await opened(box.querySelector("canvas"), {});
      view.opts.isColorbar = false;
      view.setMultiplanarLayout(3);
      const [under, codes] = await Promise.all(["template", "labels"].map((role) => unpacked(document.querySelector(`script[data-region-map="${role}"]`).textContent)));
      view.addVolume(await image(nifti(settings.header, under), "template", { colormap: "gray" }));
      return { view, labels: settings.wide ? new Uint16Array(codes.buffer) : codes };
    };

    const middle = (labels, label) => {
      const [nx, ny] = settings.shape;
      const inside = [];
      labels.forEach((value, voxel) => { if (value === label) inside.push([voxel % nx, Math.floor(voxel / nx) % ny, Math.floor(voxel / (nx * ny))]); });
      if (!inside.length) return null;
      const mean = [0, 1, 2].map((axis) => inside.reduce((sum, at) => sum + at[axis], 0) / inside.length);
      const away = (at) => at.reduce((sum, value, axis) => sum + (value - mean[axis]) ** 2, 0);
      return inside.reduce((best, at) => (away(at) < away(best) ? at : best));
    };

    const show = async (name, table, row) => {
      table.closest(".sheet").before(box);
      box.hidden = false;
      marked?.classList.remove("marked");
      marked = row;
      row.classList.add("marked");
      said.textContent = page.visible(name);
      try {
        ready ??= start();
        const { view, labels } = await ready;
        const label = labelOf.get(name);
        const at = middle(labels, label);
        while (view.volumes.length > 1) view.removeVolumeByIndex(1);
        if (!at) {
          said.textContent = page.visible(`${name}: too small to be seen at 3 mm`);
          return;
        }
        const mask = Uint8Array.from(labels, (value) => (value === label ? 1 : 0));
        view.addVolume(await image(nifti(settings.header, mask), "region", { colormap: "red", cal_min: 0, cal_max: 1, opacity: 0.65 }));
        view.scene.crosshairPos = view.vox2frac(at, 0);
        view.updateGLVolume();
        box.dataset.shown = name;
      } catch (error) {
        said.textContent = cannot(error);
      }
    };

    for (const [id, one] of page.tables) {
      const table = document.getElementById(id);
      one.eachRow(({ cells, row }) => {
        if (!labelOf.has(cells[0].text)) return;
        const head = row.cells[0];
        const opener = page.button("", () => show(cells[0].text, table, row));
        opener.className = "opener";
        opener.title = "Show this region";
        opener.append(...head.childNodes);
        head.append(opener);
        row.addEventListener("click", (event) => { if (!event.target.closest("button, a")) show(cells[0].text, table, row); });
      });
    }
    box.querySelector('[data-role="close"]').addEventListener("click", () => {
      box.hidden = true;
      marked?.classList.remove("marked");
    });
  };

  page.volumes = { whole, unpacked, nifti, image, opened, cannot };
  document.querySelectorAll(".viewer").forEach(scans);
  document.querySelectorAll("#region-map").forEach(regions);
})();
