import DiffusionCore
import Observation

/// The state of one picture or clip for a SwiftUI view. Bind to its properties and call its methods.
///
/// ```swift
/// @State private var generation = Generation(pipeline: pipeline)
/// ```
@MainActor
@Observable
public final class Generation {
  /// The phases of a run.
  public enum State: Sendable, Equatable {
    /// No run yet, or the run was cancelled.
    case idle
    /// `done` of `total` steps are done.
    case running(done: Int, total: Int)
    /// The picture or clip is finished.
    case finished
    /// The run stopped with a snapshot; `resume()` continues it.
    case interrupted(reason: String)
    /// The run failed, with a sentence that says why.
    case failed(String)
  }

  /// The phase of the current run.
  public private(set) var state: State = .idle
  /// The newest clean estimates, highest level first, and finally the result.
  public private(set) var pictures: [Picture] = []
  /// The same as clips, if the run makes a clip; else empty.
  public private(set) var clips: [Clip] = []
  /// Durations of the steps so far, in seconds.
  public private(set) var stepSeconds: [Double] = []
  /// The thermal state of the device at the last step.
  public private(set) var thermalState: ThermalState = .unknown
  /// Sentences about what is not as it was asked for, such as a prompt whose end is cut off.
  public private(set) var remarks: [String] = []
  private let pipeline: Pipeline
  private var steps: Steps?
  private var task: Task<Void, Never>?
  private var snapshot: Snapshot?
  private var resumed: Snapshot?  // where the current run began, if it was resumed

  /// - Parameter pipeline: for this object alone.
  public init(pipeline: Pipeline) { self.pipeline = pipeline }

  /// Makes a picture. Cancels a picture that is being made.
  public func start(_ request: PictureRequest, previews: Previews = .all) {
    restart()
    follow(pipeline.generate(request, previews: previews), from: nil)
  }

  /// Makes a clip. Cancels what is being made.
  public func start(clip request: ClipRequest, previews: Previews = .all) {
    restart()
    follow(pipeline.clip(request, previews: previews), from: nil)
  }

  /// Continues after an interruption; does nothing otherwise. If that fails, it can be tried again.
  public func resume(previews: Previews = .all) {
    guard let snapshot else { return }
    end()
    follow(pipeline.resume(snapshot, previews: previews), from: snapshot)
  }

  /// Ends the run and releases what its memory policy does not keep. A run that was resumed can be
  /// resumed again from where it was interrupted.
  public func cancel() {
    end()
    if case .running = state {
      state = .idle
      snapshot = resumed
    }
  }

  /// Stops the run so that `resume()` can continue it. Call it when the app goes to the background, and
  /// then `wait()` for the package at work.
  public func interrupt() async { pipeline.interrupt(reason: "in the background") }

  /// Returns when the last run has ended and released its resources.
  public func wait() async {
    await task?.value
    await pipeline.idle()
  }

  private func restart() {
    end()
    (pictures, clips) = ([], [])
    (stepSeconds, remarks) = ([], [])
  }

  /// Ends the run at once. Its reader may not have been scheduled yet, and would end it too late for the
  /// next run, which would find the pipeline busy.
  private func end() {
    steps?.cancel()
    task?.cancel()
  }

  private func follow(_ steps: Steps, from resumed: Snapshot?) {
    self.steps = steps
    self.resumed = resumed
    snapshot = nil
    state = .running(done: 0, total: 0)
    task = Task { [weak self] in
      do {
        for try await step in steps {
          guard let self, !Task.isCancelled else { return }
          self.show(step)
        }
      } catch MatryoshkaError.interrupted(let snapshot, let reason) {
        guard !Task.isCancelled else { return }
        self?.snapshot = snapshot
        self?.state = .interrupted(reason: reason)
      } catch {
        guard !Task.isCancelled else { return }
        self?.snapshot = resumed
        self?.state = .failed((error as? MatryoshkaError)?.errorDescription ?? "\(error)")
      }
    }
  }

  private func show(_ step: Step) {
    pictures = step.finished?.pictures ?? step.previews
    clips = step.finished?.clips ?? step.clips
    stepSeconds.append(step.seconds)
    thermalState = step.thermalState
    remarks = step.remarks
    state = step.finished == nil ? .running(done: step.index + 1, total: step.total) : .finished
  }
}
