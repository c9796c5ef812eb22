import DiffusionCore
import Foundation

/// The state of a run after one step.
public struct Step: Sendable {
  /// The number of steps done before this one.
  public let index: Int
  /// The total number of steps.
  public let total: Int
  /// Clean estimates of the requested sides, highest level first. Of a clip, each shows all frames, row by
  /// row.
  public let previews: [Picture]
  /// The frames of the previews, if the run makes a clip; else empty. A level that shows the key frame alone
  /// has one.
  public let clips: [Clip]
  /// The result; only in the last step, which is never dropped.
  public let finished: Finished?
  /// The duration of this step, in seconds.
  public let seconds: Double
  /// The thermal state of the device.
  public let thermalState: ThermalState
  /// Sentences about what is not as it was asked for, such as a prompt whose end is cut off. Every step
  /// of a run has the same.
  public let remarks: [String]
}

/// The result of a run.
public struct Finished: Sendable {
  /// One picture per level that ran, highest first. Of a clip, each shows all frames, row by row.
  public let pictures: [Picture]
  /// One clip per level that ran, highest first, if the run made a clip; else empty.
  public let clips: [Clip]
  /// The pictures before rounding to 8 bits: (1, 3, side, side), in [-1, 1].
  public let values: [Tensor]

  /// The picture of the highest level.
  public var picture: Picture { pictures[0] }
  /// The clip of the highest level; nil if the run made a picture.
  public var clip: Clip? { clips.first }
}

/// Which clean estimates become pictures at every step. Each costs its bytes and little time.
public enum Previews: Sendable, Equatable {
  /// None.
  case none
  /// These sides, if their levels run; of clips, the sides that all frames fill.
  case sides(Set<Int>)
  /// Every level.
  case all

  func include(_ side: Int) -> Bool {
    switch self {
    case .none: false
    case .sides(let sides): sides.contains(side)
    case .all: true
    }
  }
}

/// `ProcessInfo.ThermalState`, or unknown if the system has none.
public enum ThermalState: String, Sendable {
  /// The system's own names; unknown on Linux.
  case nominal, fair, serious, critical, unknown

  /// The current state of the device.
  public static var current: ThermalState {
    #if canImport(Darwin)
      switch ProcessInfo.processInfo.thermalState {
      case .nominal: .nominal
      case .fair: .fair
      case .serious: .serious
      case .critical: .critical
      @unknown default: .unknown
      }
    #else
      .unknown
    #endif
  }
}
