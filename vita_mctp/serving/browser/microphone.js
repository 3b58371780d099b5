// The microphone, and in plain words why there is none.

const WHY = {
  NotAllowedError: "The microphone was refused. Allow it for this page, at the left of the address, and try again; or type.",
  NotFoundError: "No microphone was found. Connect one and try again; or type.",
  NotReadableError: "Another program holds the microphone. Close that one and try again; or type.",
};
const INSECURE = "Browsers give a microphone to pages on this computer or over HTTPS only. "
  + "Start the demo with --ssl-certificate and --ssl-key, or type.";

// take: called with each chunk of 16-bit samples as an ArrayBuffer; lost: when the microphone is gone. Rejects with an Error that a visitor can read.
export async function openMicrophone(take, lost) {
  if (!window.isSecureContext || !navigator.mediaDevices) throw new Error(INSECURE);
  let stream;
  try {
    const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };
    stream = await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    throw new Error(WHY[error.name] ?? `The microphone does not work (${error.name}). Try another one, or type.`);
  }
  for (const track of stream.getTracks()) track.onended = lost;
  const context = new AudioContext();
  await context.audioWorklet.addModule(new URL("capture.js", import.meta.url));
  const capture = new AudioWorkletNode(context, "capture");
  capture.port.onmessage = ({ data }) => take(data);
  context.createMediaStreamSource(stream).connect(capture).connect(context.destination); // it puts out silence
  return {
    close() {
      for (const track of stream.getTracks()) track.stop();
      return context.close();
    },
  };
}
